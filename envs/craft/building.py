"""Scripted episodes of block building: seven blocks are carried to their places, one after the other.

Each episode is a pure function of (seed, split, number, pattern). After each block the physics decides whether it rests
in its place; an attempt whose blocks do not is dropped and counted. Frame t is taken t / hz seconds after the start.
Commands go out at 30 Hz, video is kept at `hz`, 5 by default: 60 to 90 seconds are 300 to 450 frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from ..other_robots.arm import HOME
from ..other_robots.world import CONTROL_STEPS, PHYSICS_HZ
from ..physics import Physics
from .layout import HUMAN_HAND, CraftLayout, World, sample_craft_layout
from .patterns import INSTRUCTIONS, KEY_STEPS, PATTERNS
from .world import COMMAND_HZ, CraftWorld

Floats = NDArray[np.float64]
EMBODIMENTS = (HUMAN_HAND, *HOME)
MAX_ATTEMPTS = 20
TRAVEL_M = 0.20
"""height of the tool's way over the table, above what is built"""
TOLERANCE_M = 0.015
"""between a block's center and its place"""
AT_REST = 0.01  # m/s
REACH_SECONDS = (1.3, 2.2)
"""of a way over the table; the longer the way, the longer it takes"""
LOWEST_GRIP_M = 0.018
"""of the tool above the table, so that the fingers do not sink into it"""


@dataclass(frozen=True, eq=False)
class CraftEpisode:
    """One finished episode of T frames; nothing in it is an action."""

    images: NDArray[np.uint8]
    """[T, H, W, 3]"""
    key_frames: tuple[int, ...]
    """for each of the seven key steps the first frame in which its block rests in its place, let go"""
    track: NDArray[np.float64]
    """[T, 2]: column and row of the tool in the image, 0..1; for probes of the codes alone"""
    pattern: str
    instruction: str
    embodiment: str
    hz: float
    num_failed_attempts: int

    @property
    def seconds(self) -> float:
        """Simulated time."""
        return (len(self.images) - 1) / self.hz


class FallenError(Exception):
    """A block is not where it should be: the attempt is dropped."""


def build(
    *,
    seed: int,
    split: int,
    number: int,
    pattern: str,
    world: World,
    embodiments: Sequence[str] = EMBODIMENTS,
    hz: float = 5.0,
    image_size: int = 96,
) -> CraftEpisode:
    """Return episode `number`, a function of the arguments.

    Args:
        seed: of all random choices.
        split: number of the split that it belongs to.
        number: of the episode within its split.
        pattern: a key of `PATTERNS`.
        world: training or test.
        embodiments: who may build; the episode samples one.
        hz: frames per second.
        image_size: height and width of the images in pixels.

    Raises:
        InputError: a rate, size, pattern or embodiment that cannot work.
        RuntimeError: it failed `MAX_ATTEMPTS` times.
    """
    check_craft(hz, image_size, embodiments)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, split, number, attempt])
        layout = sample_craft_layout(rng, pattern=pattern, embodiments=embodiments, world=world)
        instruction = INSTRUCTIONS[pattern][int(rng.integers(len(INSTRUCTIONS[pattern])))]
        physics = Physics()  # one for each attempt: textures stay in a simulation
        try:
            builder = Builder(CraftWorld(physics, layout), rng, hz=hz, image_size=image_size)
            builder.build()
        except FallenError:
            continue
        finally:
            physics.close()
        return CraftEpisode(
            images=np.stack(builder.images),
            key_frames=tuple(builder.key_frames),
            track=np.array(builder.track),
            pattern=pattern,
            instruction=instruction,
            embodiment=layout.embodiment,
            hz=hz,
            num_failed_attempts=attempt,
        )
    raise RuntimeError(f"craft: episode {number} of seed {seed} ({pattern}) failed {MAX_ATTEMPTS} times")


def check_craft(hz: float, image_size: int, embodiments: Sequence[str]) -> None:
    """Check the arguments of `build`.

    Args:
        hz: frames per second, above 0 and at most 30.
        image_size: height and width of the images in pixels, at least 8.
        embodiments: one or more of `EMBODIMENTS`.

    Raises:
        InputError: one of them cannot work.
    """
    if not 0 < hz <= COMMAND_HZ or image_size < 8:
        raise InputError(f"craft: found hz={hz}, image_size={image_size}; need 0 < hz <= {COMMAND_HZ:g}, size >= 8")
    if not embodiments or set(embodiments) - set(EMBODIMENTS):
        raise InputError(f"embodiments={list(embodiments)}, expected one or more of {', '.join(EMBODIMENTS)}")


class Builder:
    """Moves the tool through a whole episode, and keeps the frames.

    Args:
        world: the simulation, in the state of its layout.
        rng: generator of speeds, ways and inaccuracies.
        hz: frames per second.
        image_size: of the frames, 0 keeps none.
    """

    def __init__(self, world: CraftWorld, rng: np.random.Generator, *, hz: float, image_size: int) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self.track: list[tuple[float, float]] = []
        self.key_frames: list[int] = []
        self._world = world
        self._rng = rng
        self._hz = hz
        self._image_size = image_size
        self._pace = float(rng.uniform(0.9, 1.25))
        self._physics_steps = 0
        self._position = np.array(world.layout.tool_position)
        self._yaw = 0.0
        self._closed = False

    def build(self) -> None:
        """Place all blocks and go back.

        Raises:
            FallenError: a block is not in its place.
        """
        layout = self._world.layout
        self._wait(0.6)
        for index in range(KEY_STEPS):
            self._carry(layout, index)
            self._wait(0.35)
            # On the way up: the next frame shows the block at rest without the fingers around it.
            self._check(index)
            self.key_frames.append(len(self.images))
            self._go(self._position + np.array([0.0, 0.0, 0.07]), self._yaw, 0.7)
        self._go(np.array(layout.tool_position), 0.0, 1.6)
        self._wait(1.6)
        self._check(KEY_STEPS - 1)

    def _carry(self, layout: CraftLayout, index: int) -> None:
        """Grasp block `index`, and bring it to its place."""
        rng, world = self._rng, self._world
        goal, goal_yaw = PATTERNS[layout.pattern][index].pose(layout.middle, layout.yaw)
        center, yaw = world.block_pose(index)
        # 1. Over the block, down, close. Fingers close across the short side; cubes offer two.
        period = math.pi / 2 if layout.blocks[index].shape == "cube" else math.pi
        grip_yaw = _nearest(yaw, period)
        grip = np.array([center[0], center[1], max(center[2], LOWEST_GRIP_M)])
        travel = max(TRAVEL_M, goal[2] + 0.10)
        self._travel(np.array([grip[0], grip[1], 0.11]), grip_yaw)
        self._go(grip, grip_yaw, 1.0)
        self._close(closed=True)
        world.hold(index)
        # 2. Up and over its place. The block's pose in the tool stays, so its error there is known.
        self._go(np.array([grip[0], grip[1], travel]), grip_yaw, 1.1)
        goal_grip = grip_yaw + _nearest(goal_yaw - yaw, period)
        aim = goal + rng.normal(0.0, 0.0012, 3) * [1, 1, 0]
        self._travel(np.array([aim[0], aim[1], travel]), goal_grip)
        # 3. Correct the error, as whoever watches the block does, then down and let go a millimeter above.
        place = self._position + aim - world.block_pose(index)[0]
        place[2] = aim[2] + (grip[2] - center[2]) + 0.001
        self._go(place, goal_grip, 1.4)
        self._wait(0.2)
        world.hold(None)
        self._close(closed=False)

    def _travel(self, position: Floats, yaw: float) -> None:
        """Go over the table, by a way that bends a little."""
        share = min(1.0, float(np.linalg.norm(position - self._position)) / 0.35)
        seconds = REACH_SECONDS[0] + share * (REACH_SECONDS[1] - REACH_SECONDS[0])
        self._go(position, yaw, seconds, bend=self._rng.normal(0.0, 0.015, 3) * [1, 1, 0.5])

    def _close(self, *, closed: bool) -> None:
        self._closed = closed
        self._wait(0.45)

    def _wait(self, seconds: float) -> None:
        self._go(self._position, self._yaw, seconds)

    def _go(self, position: Floats, yaw: float, seconds: float, *, bend: Floats | float = 0.0) -> None:
        """Go to a pose by a minimum-jerk motion.

        Args:
            position: of the tool [3].
            yaw: of the tool.
            seconds: at the usual pace.
            bend: by which the middle of the way lies beside the straight line [3].
        """
        start, start_yaw = self._position, self._yaw
        count = max(1, round(seconds * self._pace * COMMAND_HZ))
        for k in range(1, count + 1):
            s = k / count
            # 10 s^3 - 15 s^4 + 6 s^5: velocity and acceleration are 0 at both ends (Flash and Hogan 1985).
            blend = s**3 * (10 - 15 * s + 6 * s * s)
            beside = np.asarray(bend) * 4 * blend * (1 - blend)
            self._world.command(
                start + blend * (position - start) + beside, start_yaw + blend * (yaw - start_yaw), closed=self._closed
            )
            for _ in range(CONTROL_STEPS):
                # Frames fall on physics steps, as the recorder of other robots takes them.
                if self._physics_steps == round(len(self.images) * PHYSICS_HZ / self._hz):
                    self.images.append(self._world.image(self._image_size))
                    self.track.append(self._world.in_image(self._world.tool()[0]))
                self._world.step()
                self._physics_steps += 1
        self._position, self._yaw = position, yaw

    def _check(self, last: int) -> None:
        """Raise FallenError unless blocks 0 to `last` rest in their places."""
        layout = self._world.layout
        for index, place in enumerate(PATTERNS[layout.pattern][: last + 1]):
            goal, _ = place.pose(layout.middle, layout.yaw)
            apart = np.linalg.norm(self._world.block_pose(index)[0] - goal)
            if apart > TOLERANCE_M or self._world.block_speed(index) > AT_REST:
                raise FallenError


def _nearest(angle: float, period: float) -> float:
    """Return the angle equal to `angle` modulo `period` that is nearest to 0."""
    return (angle + period / 2) % period - period / 2
