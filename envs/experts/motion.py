"""Motions of the scripted experts: the state that they read, and straight lines of the tool center point (TCP).

`WorldState` is a read-only view of one moment. `EndEffector` turns waypoints into CALVIN's relative actions, one per
control step. Every demonstration has a seeded `Style`: its own speed, a small tremor and its own detours. The skills
(`skills.py`, `block_skills.py`) are generators made of these motions; nothing in this file knows a task.

Relative actions accumulate on a *stored* target pose, not on the measured one (quirk Q2). The commands nevertheless
depend on the *measured* pose alone: an image does not show the stored target, so a policy that learns from images could
not distinguish "wait, the target is there already" from "continue". When the arm is blocked the stored target would
run away; `LEAD_M` bounds its distance to the tool.
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

OPEN = 1.0
CLOSE = -1.0
"""Gripper commands."""
LEAD_M = 0.09
"""Largest distance of the stored target from the tool; in free motion at full speed the arm trails by 0.04 m."""
LEAD_RAD = 0.4
"""The same limit for each angle."""
APPROACH = 0.25
"""Gain of the proportional controller: the share of the remaining distance that one step commands. The arm trails its
target by two steps, so 1/8 would be critically damped; 1/4 overshoots by some percent and arrives sooner."""
DOWN_ROLL = math.pi
"""First Euler angle of a gripper that points straight down."""
YAW_CENTER = 2.05
"""Middle of the wrist's range (-0.8 to 4.9 rad); the shorter rotation to a yaw may lead past its limits."""
DOOR_HALF_WIDTH_M = 0.141
PERTURBATION_STEPS = (2, 6)
"""A perturbation takes at least 2 and fewer than 6 control steps."""
PERTURBATION_SIZE = (0.3, 1.0)
"""Translation in action units: 6 to 20 mm a step."""
PERTURBATION_ROTATION = 0.6
"""Largest rotation about each axis, in action units of 0.05 rad."""
BLOCK_COLORS = ("red", "blue", "pink")


@dataclass(frozen=True)
class Fixtures:
    """Where the furniture of a scene is while its joints are at 0; meters, world frame."""

    button: tuple[float, float]
    switch_x: float
    slide_handle_x: float
    """Middle of the door, which is 0.28 m wide."""
    slide_range: float
    drawer_x: float
    open_compartments: tuple[tuple[float, float], tuple[float, float]]
    """x range that the door leaves open when the slide joint is 0, and when it is at its maximum."""


FIXTURES: dict[str, Fixtures] = {
    "A": Fixtures((-0.28, -0.12), 0.30, 0.04, 0.28, 0.10, ((-0.32, -0.16), (-0.05, 0.13))),
    "B": Fixtures((0.28, -0.12), -0.32, 0.228, 0.304, 0.18, ((-0.12, 0.06), (0.15, 0.33))),
    "C": Fixtures((-0.12, -0.12), -0.32, 0.20, 0.24, 0.10, ((-0.12, 0.06), (0.15, 0.30))),
    "D": Fixtures((-0.12, -0.12), 0.30, 0.04, 0.28, 0.18, ((-0.32, -0.16), (-0.05, 0.13))),
}


@dataclass(frozen=True)
class BlockState:
    """The state of one block: center [3] in meters, yaw of its long edge in radians (world frame), contacts."""

    position: NDArray[np.float64]
    yaw: float
    touches: frozenset[tuple[str, str]]
    """Pairs such as ("table", "plank_link"), ("block", "red"), ("robot", "")."""

    def rests_on(self, link: str) -> bool:
        """Return whether the block touches this link of the table."""
        return ("table", link) in self.touches


@dataclass(frozen=True)
class WorldState:
    """The privileged state that an expert reads at one moment; it is never given to a policy.

    `tcp` [3] and `euler` [3] are the measured tool pose, `target` and `target_euler` the stored target pose; `width` is
    the opening of the gripper. Meters and radians, world frame. `slide`, `drawer`, `button` and `switch` are joints.
    """

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

    def with_position_error(self, error: NDArray[np.float64]) -> WorldState:
        """Return this state with all blocks moved by `error` [3], meters, and the furniture by its x (button: x, y)."""
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

    def blocks_near_tool(self, distance: float) -> list[BlockState]:
        """Return the blocks whose center is within `distance` meters of the tool center point."""
        return [block for block in self.blocks.values() if np.linalg.norm(block.position - self.tcp) < distance]

    def door_span(self) -> tuple[float, float]:
        """Return the x range that the sliding door covers."""
        middle = self.fixtures.slide_handle_x - self.slide
        return middle - DOOR_HALF_WIDTH_M, middle + DOOR_HALF_WIDTH_M

    def open_compartment(self) -> tuple[float, float] | None:
        """Return the x range of the shelf that the door leaves open; None while the door stands in the middle."""
        if self.slide < 0.05:
            return self.fixtures.open_compartments[0]
        return self.fixtures.open_compartments[1] if self.slide > self.fixtures.slide_range - 0.05 else None

    def held(self) -> str | None:
        """Return the color of the block between the fingers: touched by the robot and by nothing else."""
        for color, block in self.blocks.items():
            # A block that the robot pushes also touches the table; one that is carried does not.
            if {kind for kind, _ in block.touches} == {"robot"} and np.linalg.norm(block.position - self.tcp) < 0.06:
                return color
        return None

    def held_offset(self) -> float:
        """Return the height of the held block's center over the tool center point; 0 when nothing is held."""
        held = self.held()
        return 0.0 if held is None else float(self.blocks[held].position[2] - self.tcp[2])


def world_from_info(
    info: Mapping[str, Any], *, target: NDArray[np.float64], target_euler: NDArray[np.float64], scene: str
) -> WorldState:
    """Return the `WorldState` of a moment.

    Args:
        info: what `CalvinEnv.task_info` returns.
        target: the robot's stored target position, meters.
        target_euler: its Euler angles, radians.
        scene: name of the scene, a key of `FIXTURES`.
    """
    robot = info["robot_info"]
    parts = info["scene_info"]
    table = parts["fixed_objects"]["table"]
    movable = {name.removeprefix("block_"): value for name, value in parts["movable_objects"].items()}
    # Contacts hold numbers of links and bodies; their names are in the same dictionary.
    link_names = {index: name for name, index in table["links"].items()}
    colors = {value["uid"]: color for color, value in movable.items()}

    def touched(row: Any) -> tuple[str, str]:
        # A row of PyBullet's contact list: element 2 is the other body, element 4 its link.
        body = row[2]
        if body == robot["uid"]:
            return "robot", ""
        if body == table["uid"]:
            return "table", link_names.get(row[4], "")
        return ("block", colors[body]) if body in colors else ("other", str(body))

    blocks: dict[str, BlockState] = {}
    for color, value in movable.items():
        x, y, z, w = value["current_orn"]
        blocks[color] = BlockState(
            position=np.asarray(value["current_pos"], dtype=np.float64),
            # Direction of the local x axis in the plane; unlike an Euler angle it is right for a block on any face.
            yaw=math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)),
            touches=frozenset(touched(row) for row in value["contacts"]),
        )
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
    """How one demonstration moves: share of full speed, tremor (action units), and size of its detours (meters)."""

    speed: float
    tremor: float
    detour_m: float

    @staticmethod
    def sample(rng: np.random.Generator) -> Style:
        """Return a random style, so that demonstrations differ in speed, tremor and path."""
        return Style(float(rng.uniform(0.7, 1.0)), float(rng.uniform(0.02, 0.08)), float(rng.uniform(0.0, 0.02)))


class Perturbations:
    """Random pushes against the arm, a few steps long and in any direction.

    The expert then shows how to recover. Without them a policy would train on states of perfect executions only, and
    never on those into which its own small errors lead it (as in DART, Laskey et al. 2017).

    Args:
        chance: probability of each step to be the first of a push.
        rng: generator of the time and direction of the pushes.
    """

    def __init__(self, chance: float, rng: np.random.Generator) -> None:
        self._chance = chance
        self._rng = rng
        self._steps_left = 0
        self._push = np.zeros(3)
        self._rotation = np.zeros(3)

    def onto(self, action: Action) -> Action:
        """Return what is executed in place of `action`: itself, or a push with the same gripper command."""
        if self._chance == 0:
            return action  # before the first random number: the generator's stream is then as without perturbations
        if self._steps_left == 0 and self._rng.random() < self._chance:
            # Direction uniform on the sphere, size and rotation uniform in their ranges.
            self._steps_left = int(self._rng.integers(*PERTURBATION_STEPS))
            direction = self._rng.normal(size=3)
            self._push = direction / np.linalg.norm(direction) * self._rng.uniform(*PERTURBATION_SIZE)
            # About all axes: a policy that was never shown how to come back from a tilt tilts on, task after task.
            self._rotation = self._rng.uniform(-1.0, 1.0, size=3) * PERTURBATION_ROTATION
        if self._steps_left == 0:
            return action
        self._steps_left -= 1
        # The expert's gripper command stays: a push must not open the fingers.
        return np.array([*self._push, *self._rotation, action[6]])


class EndEffector:
    """Motions of the tool center point, as generators of relative actions [7].

    `Demonstrator` sets `world` to the present state before it takes the next action of a motion.

    Args:
        world: the state to begin with.
        rng: generator of tremor and detours.
        style: speed, tremor and detours.
        route: which of the task's routes to take (ways.py); "only": the one that needs no choice.
    """

    def __init__(self, world: WorldState, rng: np.random.Generator, style: Style, route: str = "only") -> None:
        self.world = world
        self.rng = rng
        self.style = style
        self.route = route
        self.gripper = OPEN

    def move_to(
        self,
        position: NDArray[np.float64] | tuple[float, float, float],
        *,
        yaw: float | None = None,
        pitch: float = 0.0,
        speed: float = 1.0,
        tolerance: float = 0.012,
        limit: int = 70,
    ) -> Motion:
        """Move the tool in a straight line to a pose.

        Args:
            position: goal of the tool center point, meters.
            yaw: goal of the third Euler angle, radians; None keeps the present one.
            pitch: goal of the second Euler angle, radians.
            speed: factor on the speed of the style.
            tolerance: the motion ends within this distance of the goal, meters, and 0.08 rad of the angles.
            limit: the motion ends after this many control steps at the latest.

        Yields:
            Actions, one per control step.
        """
        goal = np.asarray(position, dtype=np.float64)
        # The stored yaw, not the measured one, which trails it while the wrist rotates.
        heading = float(self.world.target_euler[2]) if yaw is None else yaw
        for _ in range(limit):
            angles = np.array([DOWN_ROLL, pitch, heading])
            yield self._toward(goal, angles, speed)
            is_aligned = np.abs(wrap(angles - self.world.euler)).max() < 0.08
            if is_aligned and np.linalg.norm(goal - self.world.tcp) < tolerance:
                return

    def set_gripper(self, command: float, *, env_steps: int) -> Motion:
        """Hold the pose for `env_steps` control steps while the fingers open or close."""
        self.gripper = command
        for _ in range(env_steps):
            yield self._action(np.zeros(3), np.zeros(3))

    @property
    def pitch(self) -> float:
        """Second Euler angle of the stored target pose, radians."""
        return float(self.world.target_euler[1])

    def noop(self) -> Action:
        """Return the action that changes nothing."""
        return np.array([0.0] * 6 + [self.gripper])

    def near(self, position: NDArray[np.float64] | tuple[float, float, float]) -> NDArray[np.float64]:
        """Return a random point near `position`; waypoints made with it give each demonstration its own path."""
        return np.asarray(position) + self.rng.normal(scale=max(self.style.detour_m, 1e-9), size=3)

    def along(self, half_m: float) -> float:
        """Return a random offset within `half_m`; with a route to the left or right, in that outer half."""
        inner = half_m / 2
        low, high = {"left": (-half_m, -inner), "right": (inner, half_m)}.get(self.route, (-half_m, half_m))
        return float(self.rng.uniform(low, high))

    @property
    def side(self) -> float:
        """Side of the route along x: -1 left, 1 right, 0 neither."""
        return {"left": -1.0, "right": 1.0}.get(self.route, 0.0)

    def _toward(self, goal: NDArray[np.float64], angles: NDArray[np.float64], speed: float) -> Action:
        """Return one action of a proportional controller on the measured pose, within the speed of the style."""
        world = self.world
        # Translation: a share of the distance from the measured position, at most one action unit at full speed.
        move = APPROACH * (goal - world.tcp)
        length = float(np.linalg.norm(move))
        move *= min(1.0, POSITION_UNIT_M * self.style.speed * speed / max(length, 1e-9))
        # Where the stored target would be after that, relative to the tool, shortened to the allowed lead.
        lead = world.target + move - world.tcp
        lead *= min(1.0, LEAD_M / max(float(np.linalg.norm(lead)), 1e-9))
        # Rotation: the same, for each angle by itself.
        ahead = wrap(world.target_euler - world.euler)
        remaining = wrap(angles - world.target_euler)
        remaining[2] = angles[2] - world.target_euler[2]  # not wrapped: the wrist has limits
        rotation = np.clip(APPROACH * (remaining + ahead), -ROTATION_UNIT_RAD, ROTATION_UNIT_RAD)
        rotation = np.clip(ahead + rotation, -LEAD_RAD, LEAD_RAD) - ahead
        return self._action(world.tcp + lead - world.target, rotation)

    def _action(self, move: NDArray[np.float64], rotation: NDArray[np.float64]) -> Action:
        """Return the action for a translation [3] in meters and a rotation [3] in radians, with tremor, clipped."""
        action = np.empty(ACTION_DIM)
        # Tremor is part of every action, also while the gripper holds its pose; that of the angles is smaller.
        action[:3] = move / POSITION_UNIT_M + self.rng.normal(scale=self.style.tremor, size=3)
        action[3:6] = rotation / ROTATION_UNIT_RAD + self.rng.normal(scale=self.style.tremor / 4, size=3)
        action[:6] = np.clip(action[:6], -1.0, 1.0)
        action[6] = self.gripper
        return action


def vector(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Return a point or an offset [3], meters.

    Args:
        x: along the x axis, meters.
        y: along the y axis, meters.
        z: along the z axis, meters.
    """
    return np.array([x, y, z])


def wrist_yaw(yaw: float) -> float:
    """Return the angle equal to `yaw` modulo 2 pi that lies within pi of `YAW_CENTER`."""
    return YAW_CENTER + (yaw - YAW_CENTER + math.pi) % (2 * math.pi) - math.pi


def wrap(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return angles in [-pi, pi)."""
    return (angles + math.pi) % (2 * math.pi) - math.pi
