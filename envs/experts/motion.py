"""What a scripted expert sees and how it moves: privileged world state, and straight lines for the tool center point.

`WorldState` is a read-only view of one moment (calvin specification, section 10). `Hand` turns waypoints into CALVIN
relative actions, one per control step, with a seeded human touch: every demonstration has its own speed, its own small
tremor and its own detours. Skills (`skills.py`) are generators built from these motions; nothing here knows a task.

Relative actions accumulate on a *stored* target pose, not on the measured one (quirk Q2). The hand nevertheless
commands what the *measured* pose asks for: where the stored target stands cannot be seen in an image, so whoever
learns from images could not tell "wait, the target is there already" from "go on". A blocked arm lets the target run
away; `LEAD_M` bounds how far it may go ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, POSITION_UNIT_M, ROTATION_UNIT_RAD

Action = NDArray[np.float64]
Motion = Iterator[Action]

OPEN, CLOSE = 1.0, -1.0
LEAD_M = 0.09
"""The stored target stays within this distance of the tool; in free motion at full speed the arm trails by 0.04 m."""
LEAD_RAD = 0.4
"""The same for each angle."""
APPROACH = 0.25
"""Share of the way that is left, commanded in one step. The arm trails its target by two steps' way, so 1/8 would be
critically damped; 1/4 overshoots by some percent and is there sooner."""
DOWN_ROLL = math.pi
"""First Euler angle of a hand that points straight down."""
YAW_CENTER = 2.05
"""Middle of the headings that the wrist can take (-0.8 to 4.9 rad); the short way round may lead past its limits."""
DOOR_HALF_WIDTH_M = 0.141
BUMP_STEPS = (2, 6)
"""A push takes at least 2 and fewer than 6 steps."""
BUMP_SIZE = (0.3, 1.0)
"""Action units: 6 to 20 mm a step."""
BUMP_TWIST = 0.6
"""Largest turn about the vertical, action units."""
BLOCK_COLORS = ("red", "blue", "pink")


@dataclass(frozen=True)
class Fixtures:
    """Where the furniture of a scene is, joints at 0: meters, world frame (calvin specification, section 3)."""

    button: tuple[float, float]
    switch_x: float
    slide_handle_x: float
    """Middle of the door, which is 0.28 m wide."""
    slide_range: float
    drawer_x: float
    open_compartments: tuple[tuple[float, float], tuple[float, float]]
    """x range that is free of the door when the slide joint is 0, and when it is at its maximum."""


FIXTURES: dict[str, Fixtures] = {
    "A": Fixtures((-0.28, -0.12), 0.30, 0.04, 0.28, 0.10, ((-0.32, -0.16), (-0.05, 0.13))),
    "B": Fixtures((0.28, -0.12), -0.32, 0.228, 0.304, 0.18, ((-0.12, 0.06), (0.15, 0.33))),
    "C": Fixtures((-0.12, -0.12), -0.32, 0.20, 0.24, 0.10, ((-0.12, 0.06), (0.15, 0.30))),
    "D": Fixtures((-0.12, -0.12), 0.30, 0.04, 0.28, 0.18, ((-0.32, -0.16), (-0.05, 0.13))),
}


@dataclass(frozen=True)
class BlockState:
    """One block: center, heading of its long edge (radians, world), and what it touches."""

    position: NDArray[np.float64]
    yaw: float
    touches: frozenset[tuple[str, str]]
    """Pairs such as ("table", "plank_link"), ("block", "red"), ("robot", "")."""

    def rests_on(self, link: str) -> bool:
        """Say whether the block touches this link of the table."""
        return ("table", link) in self.touches


@dataclass(frozen=True)
class WorldState:
    """Everything an expert may know at one moment; privileged, never given to a policy."""

    fixtures: Fixtures
    tcp: NDArray[np.float64]
    euler: NDArray[np.float64]
    target: NDArray[np.float64]
    target_euler: NDArray[np.float64]
    width: float
    target_grip: float
    """The last gripper command, +1 open or -1 close."""
    blocks: dict[str, BlockState]
    slide: float
    drawer: float
    button: float
    switch: float
    lights: dict[str, bool]

    def misjudged(self, error: NDArray[np.float64]) -> WorldState:
        """What somebody sees who misjudges where things are by `error`, meters; of the furniture, along x alone."""
        x = float(error[0])
        blocks = {color: replace(block, position=block.position + error) for color, block in self.blocks.items()}
        fixtures = replace(
            self.fixtures,
            button=(self.fixtures.button[0] + x, self.fixtures.button[1] + float(error[1])),
            switch_x=self.fixtures.switch_x + x,
            slide_handle_x=self.fixtures.slide_handle_x + x,
            drawer_x=self.fixtures.drawer_x + x,
        )
        return replace(self, blocks=blocks, fixtures=fixtures)

    def near_hand(self, distance: float) -> list[BlockState]:
        """Return the blocks whose center is within `distance` meters of the tool."""
        return [block for block in self.blocks.values() if np.linalg.norm(block.position - self.tcp) < distance]

    def door_span(self) -> tuple[float, float]:
        """Return the x range that the sliding door covers."""
        middle = self.fixtures.slide_handle_x - self.slide
        return middle - DOOR_HALF_WIDTH_M, middle + DOOR_HALF_WIDTH_M

    def held(self) -> str | None:
        """Return the color of the block between the fingers: touched by the robot and by nothing else."""
        for color, block in self.blocks.items():
            if {kind for kind, _ in block.touches} == {"robot"} and np.linalg.norm(block.position - self.tcp) < 0.06:
                return color
        return None


def world_from_info(
    info: Mapping[str, Any], *, target: NDArray[np.float64], target_euler: NDArray[np.float64], scene: str
) -> WorldState:
    """Read the simulator's info dictionary and the robot's stored target pose into a `WorldState`."""
    robot, parts = info["robot_info"], info["scene_info"]
    table = parts["fixed_objects"]["table"]
    movable = {name.removeprefix("block_"): value for name, value in parts["movable_objects"].items()}
    link_names = {index: name for name, index in table["links"].items()}
    colors = {value["uid"]: color for color, value in movable.items()}

    def touched(row: Any) -> tuple[str, str]:
        body, link = row[2], row[4]
        if body == robot["uid"]:
            return "robot", ""
        if body == table["uid"]:
            return "table", link_names.get(link, "")
        return ("block", colors[body]) if body in colors else ("other", str(body))

    blocks = {
        color: BlockState(
            position=np.asarray(value["current_pos"], dtype=np.float64),
            yaw=_heading(value["current_orn"]),
            touches=frozenset(touched(row) for row in value["contacts"]),
        )
        for color, value in movable.items()
    }
    return WorldState(
        fixtures=FIXTURES[scene],
        tcp=np.asarray(robot["tcp_pos"], dtype=np.float64),
        euler=np.asarray(robot["tcp_orn"], dtype=np.float64),
        target=np.asarray(target, dtype=np.float64),
        target_euler=np.array([*target_euler[:2], wrist_yaw(float(target_euler[2]))]),
        width=float(robot["gripper_opening_width"]),
        target_grip=float(robot["gripper_action"]),
        blocks=blocks,
        slide=float(parts["doors"]["base__slide"]["current_state"]),
        drawer=float(parts["doors"]["base__drawer"]["current_state"]),
        button=float(parts["buttons"]["base__button"]["joint_state"]),
        switch=float(parts["switches"]["base__switch"]["joint_state"]),
        lights={name: bool(value["logical_state"]) for name, value in parts["lights"].items()},
    )


@dataclass(frozen=True)
class Style:
    """How one demonstrator moves: share of full speed, tremor (action units), and size of its detours (meters)."""

    speed: float
    tremor: float
    detour_m: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw a style: nobody moves twice at the same speed."""
        return Style(float(rng.uniform(0.7, 1.0)), float(rng.uniform(0.02, 0.08)), float(rng.uniform(0.0, 0.02)))


class Perturbations:
    """Pushes against the arm, a few steps long and in any direction, as an elbow would give it.

    A demonstrator that is pushed shows how to come back: whoever learns from still hands alone has never seen the
    places where its own small errors lead.

    Args:
        chance: of each step to be the first of a push.
        rng: draws when and where to.
    """

    def __init__(self, chance: float, rng: np.random.Generator) -> None:
        self._chance, self._rng = chance, rng
        self._left = 0
        self._push, self._twist = np.zeros(3), 0.0

    def onto(self, action: Action) -> Action:
        """What is executed in place of `action`: itself, or the push with the same gripper command."""
        if self._chance == 0:
            return action
        if self._left == 0 and self._rng.random() < self._chance:
            self._left = int(self._rng.integers(*BUMP_STEPS))
            direction = self._rng.normal(size=3)
            self._push = direction / np.linalg.norm(direction) * self._rng.uniform(*BUMP_SIZE)
            self._twist = float(self._rng.uniform(-1.0, 1.0) * BUMP_TWIST)
        if self._left == 0:
            return action
        self._left -= 1
        return np.array([*self._push, 0.0, 0.0, self._twist, action[6]])


class Hand:
    """Motions of the tool center point. `world` is renewed by the demonstrator before every action."""

    def __init__(self, world: WorldState, rng: np.random.Generator, style: Style) -> None:
        self.world = world
        self.rng = rng
        self.style = style
        self.grip = OPEN

    def go(
        self,
        position: NDArray[np.float64] | tuple[float, float, float],
        *,
        yaw: float | None = None,
        pitch: float = 0.0,
        speed: float = 1.0,
        tolerance: float = 0.012,
        limit: int = 70,
    ) -> Motion:
        """Move in a straight line until the tool is within `tolerance` meters of `position`, or for `limit` steps.

        `yaw` None keeps the heading. `speed` scales the demonstrator's own.
        """
        goal = np.asarray(position, dtype=np.float64)
        heading = float(self.world.target_euler[2]) if yaw is None else yaw
        for _ in range(limit):
            angles = np.array([DOWN_ROLL, pitch, heading])
            yield self._toward(goal, angles, speed)
            turned = np.abs(wrap(angles - self.world.euler)).max() < 0.08
            if turned and np.linalg.norm(goal - self.world.tcp) < tolerance:
                return

    def squeeze(self, grip: float, *, steps: int) -> Motion:
        """Stand still while the fingers open or close."""
        self.grip = grip
        for _ in range(steps):
            yield self._action(np.zeros(3), np.zeros(3))

    def rest(self) -> Action:
        """Return the action that changes nothing."""
        return np.array([0.0] * 6 + [self.grip])

    def near(self, position: NDArray[np.float64] | tuple[float, float, float]) -> NDArray[np.float64]:
        """Return a point beside `position`, drawn once per call: how detours come about."""
        return np.asarray(position) + self.rng.normal(scale=max(self.style.detour_m, 1e-9), size=3)

    def _toward(self, goal: NDArray[np.float64], angles: NDArray[np.float64], speed: float) -> Action:
        """A step of a proportional controller on the measured pose, at most at the demonstrator's speed."""
        world = self.world
        move = APPROACH * (goal - world.tcp)
        length = float(np.linalg.norm(move))
        move *= min(1.0, POSITION_UNIT_M * self.style.speed * speed / max(length, 1e-9))
        lead = world.target + move - world.tcp
        lead *= min(1.0, LEAD_M / max(float(np.linalg.norm(lead)), 1e-9))
        ahead = wrap(world.target_euler - world.euler)
        short = wrap(angles - world.target_euler)
        short[2] = angles[2] - world.target_euler[2]  # the wrist has limits, so not the short way round
        turn = np.clip(APPROACH * (short + ahead), -ROTATION_UNIT_RAD, ROTATION_UNIT_RAD)
        turn = np.clip(ahead + turn, -LEAD_RAD, LEAD_RAD) - ahead
        return self._action(world.tcp + lead - world.target, turn)

    def _action(self, move: NDArray[np.float64], turn: NDArray[np.float64]) -> Action:
        action = np.empty(ACTION_DIM)
        action[:3] = move / POSITION_UNIT_M + self.rng.normal(scale=self.style.tremor, size=3)
        action[3:6] = turn / ROTATION_UNIT_RAD + self.rng.normal(scale=self.style.tremor / 4, size=3)
        action[:6] = np.clip(action[:6], -1.0, 1.0)
        action[6] = self.grip
        return action


def vector(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Return a point or an offset, meters."""
    return np.array([x, y, z])


def wrist_yaw(yaw: float) -> float:
    """Return the heading equal to `yaw` that lies within pi of `YAW_CENTER`."""
    return YAW_CENTER + (yaw - YAW_CENTER + math.pi) % (2 * math.pi) - math.pi


def wrap(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return angles in [-pi, pi)."""
    return (angles + math.pi) % (2 * math.pi) - math.pi


def _heading(quaternion: tuple[float, float, float, float]) -> float:
    """Yaw of the local x axis, also for a block that lies on another face."""
    x, y, z, w = quaternion
    return math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
