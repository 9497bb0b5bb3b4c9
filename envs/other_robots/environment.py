"""Scripted episodes from the second robot world: reach, push, pick, and put on a plate, with a sentence each.

This is the cross-domain half of pre-training data that needs no download: other robots than CALVIN's, another table,
another camera. `vw2-record` writes it as an RLDS data set. Each episode is a pure function of (seed, index). The script
decides in advance where the tool shall go; physics decides whether that worked. What did not work is thrown away and
counted, never kept under a wrong label.

Time: frame t is taken t / hz seconds after the start; action t is what happened between frame t and frame t + 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError

from ..physics import Physics
from .world import (
    CONTROL_STEPS,
    HOME,
    LEFT_FINGER,
    PHYSICS_HZ,
    RIGHT_FINGER,
    OtherRobotsEnv,
    SceneLayout,
    Thing,
    sample_layout,
)

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

COMMAND_HZ = PHYSICS_HZ / CONTROL_STEPS
EMBODIMENTS = tuple(HOME)
MAX_ATTEMPTS = 20  # for one episode; about one script in forty fails
CRUISE_M_S = 0.30  # mean speed of a free motion
PUSH_M_S = 0.14
GRASP_Z = 0.020
CLEARANCE_M = 0.055  # between a path of the hand and a thing that is not to be touched


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One solved episode.

    images: uint8 [T, H, W, 3]. actions: float32 [T, 7], the tool's measured motion until the next frame, as the mean
    over that time in the units of a CALVIN action (0.02 m and 0.05 rad per 1/30 s), and the gripper command, -1 closed
    or +1 open; the last row moves nothing. success: read from the physics state at the end, and always true, since
    failures are dropped; failed_attempts: how many were dropped before this one came out right.
    """

    images: NDArray[np.uint8]
    actions: NDArray[np.float32]
    instruction: str
    task: str
    success: bool
    failed_attempts: int
    hz: float


@dataclass(frozen=True)
class Leg:
    """Part of a script: go there in that time, with the fingers so all the while."""

    position: Floats
    yaw: float
    closed: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A task made concrete for one layout: the sentence, the script, and the question put to the world at the end."""

    task: str
    instruction: str
    legs: list[Leg]
    succeeded: Callable[[OtherRobotsEnv], bool]


def solved_episodes(
    count: int, *, seed: int, hz: float = 5.0, image_size: int = 128, embodiments: Sequence[str] = EMBODIMENTS
) -> Iterator[RecordedEpisode]:
    """Yield `count` solved episodes of about 12 to 25 frames at 5 Hz; each draws one of `arms`.

    Raises:
        InputError: a count, rate, size or arm that cannot work.
        RuntimeError: one episode failed `MAX_ATTEMPTS` times, which means that this world is broken.
    """
    check_world(count, hz, image_size, embodiments)
    physics = Physics()
    dropped = 0
    try:
        for index in range(count):
            episode = solved_episode(
                physics, seed=seed, index=index, hz=hz, image_size=image_size, embodiments=embodiments
            )
            dropped += episode.failed_attempts
            yield episode
    finally:
        physics.close()
    logger.info("other robots: %d episodes recorded, %d failed attempts dropped", count, dropped)


def check_world(count: int, hz: float, image_size: int, embodiments: Sequence[str]) -> None:
    """Raise an `InputError` for numbers that cannot work, if there is no arm, or one that nobody knows."""
    if count < 0 or not 0 < hz <= COMMAND_HZ or image_size < 8:
        raise InputError(
            f"other robots: found count={count}, hz={hz}, image_size={image_size}; "
            f"need count >= 0, 0 < hz <= {COMMAND_HZ:g}, image_size >= 8"
        )
    if not embodiments or set(embodiments) - set(EMBODIMENTS):
        raise InputError(f"embodiments={list(embodiments)}, expected one or more of {', '.join(EMBODIMENTS)}")


def solved_episode(
    physics: Physics, *, seed: int, index: int, hz: float, image_size: int, embodiments: Sequence[str] = EMBODIMENTS
) -> RecordedEpisode:
    """Return episode `index`: a function of (seed, index, embodiments), whatever `physics` was used for before.

    Raises:
        RuntimeError: it failed `MAX_ATTEMPTS` times.
    """
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, attempt])))
        task = TASKS[int(rng.choice(len(TASKS), p=SHARES))]
        layout, plan = _draw(task, rng, embodiments)
        world = OtherRobotsEnv(physics, layout)
        images, actions = _play(world, plan, hz=hz, image_size=image_size)
        if plan.succeeded(world):
            return RecordedEpisode(images, actions, plan.instruction, plan.task, True, attempt, hz)
    raise RuntimeError(f"other robots: episode {index} of seed {seed} failed {MAX_ATTEMPTS} times")


def _draw(task: Task, rng: np.random.Generator, embodiments: Sequence[str] = EMBODIMENTS) -> tuple[SceneLayout, Plan]:
    """Layouts in which the task is possible, drawn until one comes."""
    while True:
        layout = sample_layout(rng, embodiments=embodiments, plates=1 if task is _place else int(rng.random() < 0.3))
        plan = task(layout, rng)
        if plan is not None:
            return layout, plan


def _play(
    world: OtherRobotsEnv, plan: Plan, *, hz: float, image_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Run the script to its end and on to the next frame; return images and actions."""
    images: list[NDArray[np.uint8]] = []
    poses: list[Floats] = []
    grips: list[float] = []
    commands = _commands(world.layout, plan.legs)
    last_frame = math.ceil(len(commands) * CONTROL_STEPS * hz / PHYSICS_HZ - 1e-9)
    frame_steps = [round(frame * PHYSICS_HZ / hz) for frame in range(last_frame + 1)]
    closed = False
    for step in range(frame_steps[-1] + 1):
        if step == frame_steps[len(images)]:
            images.append(world.image(image_size))
            poses.append(np.concatenate(world.tool()))
            grips.append(-1.0 if closed else 1.0)
        if step % CONTROL_STEPS == 0:
            position, yaw, closed = commands[min(step // CONTROL_STEPS, len(commands) - 1)]
            world.command(position, yaw, closed=closed)
        world.step()
    return np.stack(images), _actions(np.stack(poses), np.array(grips), hz=hz)


def _commands(layout: SceneLayout, legs: list[Leg]) -> list[tuple[Floats, float, bool]]:
    """One tool pose per command, with smooth starts and stops: minimum-jerk interpolation of each leg."""
    commands = []
    position, yaw = np.array(layout.tool), layout.tool_yaw
    for leg in legs:
        count = max(1, round(leg.seconds * COMMAND_HZ))
        for k in range(1, count + 1):
            s = k / count
            blend = s**3 * (10 - 15 * s + 6 * s * s)
            commands.append((position + blend * (leg.position - position), yaw + blend * (leg.yaw - yaw), leg.closed))
        position, yaw = leg.position, leg.yaw
    return commands


def _actions(poses: Floats, grips: Floats, *, hz: float) -> NDArray[np.float32]:
    """Differences of consecutive poses in CALVIN's units of speed; the gripper command is that of the next frame."""
    actions = np.zeros((len(poses), ACTION_DIM), dtype=np.float32)
    moved = np.diff(poses, axis=0)
    moved[:, 3:] = (moved[:, 3:] + math.pi) % (2 * math.pi) - math.pi
    ticks = COMMAND_HZ / hz  # control steps between two frames
    actions[:-1, :3] = moved[:, :3] / (POSITION_UNIT_M * ticks)
    actions[:-1, 3:6] = moved[:, 3:] / (ROTATION_UNIT_RAD * ticks)
    actions[:-1, GRIPPER_INDEX] = grips[1:]
    actions[-1, GRIPPER_INDEX] = grips[-1]
    return actions


# Tasks. Each returns None where the layout does not allow it.

Task = Callable[[SceneLayout, np.random.Generator], "Plan | None"]


def _reach(layout: SceneLayout, rng: np.random.Generator) -> Plan:
    """Bring the open gripper over a thing and stop close above it."""
    index = _choose(layout, rng)
    thing = layout.things[index]
    goal = np.array([*thing.xy, thing.height + rng.uniform(0.025, 0.045)])
    over = goal + np.array([0.0, 0.0, 0.09])
    hover = float(rng.uniform(0.4, 0.8))
    legs = [_travel(layout.tool, over, _grasp_yaw(thing)), Leg(goal, _grasp_yaw(thing), False, 0.8),
            Leg(goal, _grasp_yaw(thing), False, hover)]  # fmt: skip

    def succeeded(world: OtherRobotsEnv) -> bool:
        return bool(np.linalg.norm(world.tool()[0] - goal) < 0.02) and _undisturbed(world, except_for=None)

    verb = rng.choice(["move the gripper to", "reach for", "go to", "hover over", "move above"])
    return Plan("reach", f"{verb} the {thing.name}", legs, succeeded)


def _push(layout: SceneLayout, rng: np.random.Generator) -> Plan | None:
    """Push a thing some centimeters to a side, as seen in the image."""
    index = _choose(layout, rng)
    thing = layout.things[index]
    names = {"to the right": layout.right, "to the left": -layout.right,
             "away from the camera": layout.ahead, "toward the camera": -layout.ahead}  # fmt: skip
    where = str(rng.choice(sorted(names)))
    direction = names[where]
    distance = float(rng.uniform(0.09, 0.13))
    start = np.array(thing.xy) - direction * 0.085
    end = np.array(thing.xy) + direction * (distance - 0.028)
    if not _clear(layout, start, end + direction * 0.06, but=(index,)) or not _reachable(start, end):
        return None
    yaw = _fold(math.atan2(direction[1], direction[0]), math.pi)
    low = min(0.024, thing.height / 2)
    above, down, far = (np.array([*xy, z]) for xy, z in ((start, 0.13), (start, low), (end, low)))
    legs = [_travel(layout.tool, above, yaw, closed=True), Leg(down, yaw, True, 0.6),
            Leg(far, yaw, True, float(np.linalg.norm(end - start)) / PUSH_M_S),
            Leg(far + np.array([*(-0.02 * direction), 0.08]), yaw, True, 0.6)]  # fmt: skip

    def succeeded(world: OtherRobotsEnv) -> bool:
        moved = world.thing(index)[:2] - thing.xy
        along = float(moved @ direction)
        sideways = float(np.linalg.norm(moved - along * direction))
        return along > 0.06 and sideways < 0.5 * along and _undisturbed(world, except_for=index)

    verb = rng.choice(["push", "slide", "shove"])
    return Plan("push", f"{verb} the {thing.name} {where}", legs, succeeded)


def _pick(layout: SceneLayout, rng: np.random.Generator) -> Plan:
    """Grasp a thing and hold it up."""
    index = _choose(layout, rng)
    thing = layout.things[index]
    lift = np.array([*thing.xy, rng.uniform(0.16, 0.22)])
    legs = [*_grasp(layout, thing), Leg(lift, _grasp_yaw(thing), True, 0.9)]

    def succeeded(world: OtherRobotsEnv) -> bool:
        raised = world.thing(index)[2] - thing.height / 2
        return raised > 0.08 and _held(world, index) and _undisturbed(world, except_for=index)

    verb = rng.choice(["pick up", "lift", "grasp and lift", "take"])
    return Plan("pick", f"{verb} the {thing.name}", legs, succeeded)


def _place(layout: SceneLayout, rng: np.random.Generator) -> Plan | None:
    """Put a thing on the plate and let go."""
    index = _choose(layout, rng)
    plate_index = next(k for k, thing in enumerate(layout.things) if thing.shape == "plate")
    thing, plate = layout.things[index], layout.things[plate_index]
    if not _clear(layout, np.array(thing.xy), np.array(plate.xy), but=(index, plate_index)):
        return None
    yaw = _grasp_yaw(thing)
    up, over = (np.array([*xy, 0.14]) for xy in (thing.xy, plate.xy))
    down = np.array([*plate.xy, GRASP_Z + plate.height + 0.004])
    legs = [*_grasp(layout, thing), Leg(up, yaw, True, 0.6), _travel((up[0], up[1], up[2]), over, yaw, closed=True),
            Leg(down, yaw, True, 0.6), Leg(down, yaw, False, 0.35), Leg(over, yaw, False, 0.6)]  # fmt: skip

    def succeeded(world: OtherRobotsEnv) -> bool:
        apart = float(np.linalg.norm(world.thing(index)[:2] - world.thing(plate_index)[:2]))
        touched = {body for body, _ in world.touched(index)}
        at_rest = world.speed(index) < 0.02 and touched == {world.things[plate_index]}
        return apart < 0.05 and at_rest and _undisturbed(world, except_for=index)

    verb = rng.choice(["put", "place", "set"])
    return Plan("place", f"{verb} the {thing.name} on the {plate.name}", legs, succeeded)


TASKS: tuple[Task, ...] = (_reach, _push, _pick, _place)
SHARES = (0.15, 0.35, 0.25, 0.25)


# What the tasks have in common.


def _choose(layout: SceneLayout, rng: np.random.Generator) -> int:
    """Index of a thing that can be handled, that is, of no plate."""
    return int(rng.choice([k for k, thing in enumerate(layout.things) if thing.shape != "plate"]))


def _travel(start: tuple[float, float, float], goal: Floats, yaw: float, *, closed: bool = False) -> Leg:
    """A free motion at cruising speed."""
    return Leg(goal, yaw, closed, max(0.6, float(np.linalg.norm(goal - start)) / CRUISE_M_S))


def _grasp(layout: SceneLayout, thing: Thing) -> list[Leg]:
    """Over the thing, down, and close the fingers."""
    yaw = _grasp_yaw(thing)
    over, at = np.array([*thing.xy, thing.height + 0.08]), np.array([*thing.xy, GRASP_Z])
    return [_travel(layout.tool, over, yaw), Leg(at, yaw, False, 0.7), Leg(at, yaw, True, 0.35)]


def _grasp_yaw(thing: Thing) -> float:
    """The turn at which the fingers close across the short side, nearest to the arm's middle position."""
    return _fold(thing.yaw, math.pi if thing.shape == "brick" else math.pi / 2)


def _fold(angle: float, period: float) -> float:
    return (angle + period / 2) % period - period / 2


def _reachable(*points: Floats) -> bool:
    return all(0.30 < np.linalg.norm(point) < 0.68 and abs(point[1]) < 0.34 for point in points)


def _clear(layout: SceneLayout, start: Floats, end: Floats, *, but: tuple[int, ...]) -> bool:
    """Whether the straight way keeps its distance from all things except those in `but`."""
    for index, thing in enumerate(layout.things):
        way = end - start
        nearest = start + way * float(np.clip((thing.xy - start) @ way / (way @ way), 0.0, 1.0))
        margin = CLEARANCE_M + (0.06 if thing.shape == "plate" else 0.03)
        if index not in but and np.linalg.norm(nearest - thing.xy) < margin:
            return False
    return True


def _held(world: OtherRobotsEnv, index: int) -> bool:
    """Whether both fingers press against a thing and nothing else does."""
    return world.touched(index) == {(world.arm, LEFT_FINGER), (world.arm, RIGHT_FINGER)}


def _undisturbed(world: OtherRobotsEnv, *, except_for: int | None) -> bool:
    """Whether all other things are where they were, to a centimeter."""
    return all(
        np.linalg.norm(world.thing(k)[:2] - thing.xy) < 0.01
        for k, thing in enumerate(world.layout.things)
        if k != except_for
    )
