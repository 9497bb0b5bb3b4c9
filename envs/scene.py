"""The scenes A to D: the table with doors, button, switch and lights, and three blocks.

`SCENES` holds what differs between scenes; the rest is the same in all. Meters, radians, Newtons; Euler angles are
fixed-axis x-y-z. `scene_obs` [24] is: slide, drawer, button and switch joint, bulb on, LED on, then for each block **in
the order of its scene** x, y, z and three Euler angles. That order is not red, blue, pink in A and C;
`SceneTable.block_order` names it.

Quirks kept on purpose, because recordings depend on them: a default reset sets the button before the lights, so an LED
that is on leaves the button logically on; the button stays marked as pressed over a reset; a reset always sets the
switch logically off, whatever the position of the lever.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .physics import Physics

log = logging.getLogger(__name__)

SceneName = Literal["A", "B", "C", "D"]
SCENE_NAMES: tuple[str, ...] = get_args(SceneName)
SCENE_OBS_SIZE = 24
LIGHTS_IN_SCENE_OBS = slice(4, 6)
GLOBAL_SCALE = 0.8

DOOR_JOINTS = ("base__slide", "base__drawer")
BUTTON_JOINT = "base__button"
SWITCH_JOINT = "base__switch"
TABLE_JOINTS = (*DOOR_JOINTS, BUTTON_JOINT, SWITCH_JOINT)  # in the order of scene_obs, and of creating their motors
TABLE_LINKS = ("drawer_link", "plank_link", "light_link", "led_link")  # those that tasks and lights need
LIGHTS = {"lightbulb": ("light_link", (1, 1, 0, 1)), "led": ("led_link", (0, 1, 0, 1))}  # link, color when on
OFF_COLOR = (1, 1, 1, 1)
DRAWER_OPEN_M = 0.22
JOINT_FORCE = 4  # of every motor of the table
BUTTON_PRESSED_M = 0.01  # half of its range
SWITCH_ON_M = 0.044  # half of its range
PLACING_ATTEMPTS = 1000

Vector = tuple[float, float, float]
Pose = tuple[Vector, tuple[float, float, float, float]]  # position, quaternion


@dataclass(frozen=True)
class SceneTable:
    """The numbers of one scene."""

    blocks: tuple[tuple[str, str], ...]
    """(color, size), in the order of creation and of scene_obs."""
    slide_range: float
    """Range of the slide joint, from 0; at the maximum the door is on the left."""
    surfaces: dict[str, tuple[Vector, Vector]]
    """Where a default reset may place the center of a block: low corner, high corner."""

    @property
    def block_order(self) -> tuple[str, ...]:
        """Names of the blocks in the order of scene_obs."""
        return tuple(f"block_{color}" for color, _ in self.blocks)


_LEFT_AD: tuple[Vector, Vector] = ((-0.32, 0.05, 0.46), (-0.16, 0.12, 0.46))
_RIGHT_AD: tuple[Vector, Vector] = ((-0.05, 0.05, 0.46), (0.13, 0.12, 0.46))
_LEFT_BC: tuple[Vector, Vector] = ((-0.12, 0.05, 0.46), (0.06, 0.12, 0.46))

SCENES: dict[str, SceneTable] = {
    "A": SceneTable(
        blocks=(("pink", "small"), ("blue", "big"), ("red", "middle")),
        slide_range=0.28,
        surfaces={
            "table": ((-0.2, -0.15, 0.46), (0.35, -0.03, 0.46)),
            "slider_left": _LEFT_AD,
            "slider_right": _RIGHT_AD,
        },
    ),
    "B": SceneTable(
        blocks=(("red", "small"), ("blue", "big"), ("pink", "middle")),
        slide_range=0.304,
        surfaces={
            "table": ((-0.35, -0.15, 0.46), (0.15, -0.03, 0.46)),
            "slider_left": _LEFT_BC,
            "slider_right": ((0.15, 0.05, 0.46), (0.33, 0.12, 0.46)),
        },
    ),
    "C": SceneTable(
        blocks=(("blue", "small"), ("red", "big"), ("pink", "middle")),
        slide_range=0.24,
        surfaces={
            "table": ((0.0, -0.15, 0.46), (0.35, -0.03, 0.46)),
            "slider_left": _LEFT_BC,
            "slider_right": ((0.15, 0.05, 0.46), (0.3, 0.12, 0.46)),
        },
    ),
    "D": SceneTable(
        blocks=(("red", "middle"), ("blue", "small"), ("pink", "big")),
        slide_range=0.28,
        surfaces={
            "table": ((0.0, -0.15, 0.46), (0.35, -0.03, 0.46)),
            "slider_left": _LEFT_AD,
            "slider_right": _RIGHT_AD,
        },
    ),
}


def sample_pose(table: SceneTable, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a random position [3] and Euler angles [3] of a block, with the random calls of the reference."""
    low, high = table.surfaces[rng.choice(list(table.surfaces))]
    position = rng.uniform(low, high)
    return position, rng.uniform([0, 0, -np.pi], [0, 0, np.pi])


class Light:
    """A lamp of the table: a state and a color. It illuminates nothing."""

    def __init__(self, physics: Physics, table: int, *, link: int, on_color: tuple[float, ...]) -> None:
        self._physics = physics
        self._table = table
        self._link = link
        self._on_color = on_color
        self.state = 0

    def set(self, state: int) -> None:
        """Switch to 0 or 1, and set the color."""
        self.state = state
        color = self._on_color if state else OFF_COLOR
        self._physics.changeVisualShape(self._table, self._link, rgbaColor=color)


class Scene:
    """Blocks and table, loaded into `physics` on construction; the blocks at random poses.

    Order of creation: blocks in scene order, table, its motors (slide, drawer, button, switch), the ground. It decides
    the uids and the order in which the solver treats the bodies, so recordings depend on it.

    Args:
        physics: the simulation.
        name: of the scene, a key of `SCENES`.
        root: the assets directory.
        rng: generator of the poses.

    Raises:
        InputError: the table's URDF lacks joints or links.
    """

    def __init__(self, physics: Physics, name: str, root: Path, rng: np.random.Generator) -> None:
        self.table = SCENES[name]
        self._physics = physics
        files = scene_files(name)
        self.blocks: dict[str, int] = {}
        for block, file in zip(self.table.block_order, files.blocks, strict=True):
            position, orientation = self._sample_pose(rng)
            self.blocks[block] = physics.loadURDF(
                str(root / file), basePosition=position, baseOrientation=orientation, globalScaling=GLOBAL_SCALE
            )
        self.table_uid: int = physics.loadURDF(
            str(root / files.table), basePosition=(0, 0, 0), baseOrientation=(0, 0, 0, 1), globalScaling=GLOBAL_SCALE
        )
        self._joints, self.links = self._find_joints(root / files.table)
        # Doors and lever resist motion, as friction would; the button is pushed back.
        for joint in TABLE_JOINTS:
            is_button = joint == BUTTON_JOINT
            physics.setJointMotorControl2(
                self.table_uid,
                self._joints[joint],
                controlMode=physics.POSITION_CONTROL if is_button else physics.VELOCITY_CONTROL,
                force=JOINT_FORCE,
                **({"targetPosition": 0} if is_button else {"targetVelocity": 0}),
            )
        self._lights = {
            light: Light(physics, self.table_uid, link=self.links[link], on_color=color)
            for light, (link, color) in LIGHTS.items()
        }
        self._button_state = 0
        self._button_was_pressed = False
        self._switch_state = 0
        plane: int = physics.loadURDF(str(root / files.plane))
        self.static_parts = ((plane, -1), (self.table_uid, -1), (self.table_uid, self.links["plank_link"]))
        """(body, link) of the parts that never move and never change color."""
        self.moving_parts = tuple((self.table_uid, joint) for joint in self._table_joints)
        """(body, link) of the parts that the `TABLE_JOINTS` move. A link has the number of its joint."""

    def reset_to(self, scene_obs: NDArray[np.float64]) -> None:
        """Set doors, lights, button, switch and blocks, in this order, to `scene_obs` [24]."""
        for joint, value in zip(DOOR_JOINTS, scene_obs[0:2], strict=True):
            self._set_joint(joint, value)
        for light, state in zip(LIGHTS, scene_obs[LIGHTS_IN_SCENE_OBS], strict=True):
            self._lights[light].set(round(float(state)))
        self._reset_button(scene_obs[2])
        self._reset_switch(scene_obs[3])
        for uid, pose in zip(self.blocks.values(), scene_obs[6:].reshape(3, 6), strict=True):
            orientation = self._physics.getQuaternionFromEuler(pose[3:].tolist())
            self._physics.resetBasePositionAndOrientation(uid, pose[:3].tolist(), orientation)

    def reset_to_default(self, rng: np.random.Generator) -> None:
        """Close and switch off everything (button before lights: module docstring), then place the blocks randomly."""
        for joint in DOOR_JOINTS:
            self._set_joint(joint, 0.0)
        self._reset_button(0.0)
        self._reset_switch(0.0)
        for light in self._lights.values():
            light.set(0)
        # Sample poses of all three blocks until no two of them touch after one physics step.
        uids = list(self.blocks.values())
        for _ in range(PLACING_ATTEMPTS):
            for uid in uids:
                self._physics.resetBasePositionAndOrientation(uid, *self._sample_pose(rng))
            self._physics.stepSimulation()
            if not any(self._physics.getContactPoints(bodyA=a, bodyB=b) for a, b in combinations(uids, 2)):
                return
        log.error("blocks still touch after %d placements; the last one stays", PLACING_ATTEMPTS)

    def update_button_and_switch(self) -> None:
        """Set the lights by button and lever; call it once per control step, after the physics steps."""
        _, _, button, switch = self.joints()
        pressed = button > BUTTON_PRESSED_M
        if pressed and not self._button_was_pressed:  # a light toggles at the moment of pressing, not while pressed
            self._button_state = 1 - self._button_state
            self._lights["led"].set(self._button_state)
        self._button_was_pressed = pressed
        lever = int(switch > SWITCH_ON_M)
        if lever != self._switch_state:
            self._switch_state = lever
            self._lights["lightbulb"].set(lever)

    def joints(self) -> list[float]:
        """Return the positions of the `TABLE_JOINTS`."""
        return [state[0] for state in self._physics.getJointStates(self.table_uid, self._table_joints)]

    def set_joints(self, positions: Iterable[float]) -> None:
        """Move the `TABLE_JOINTS`, and nothing that depends on them."""
        for joint, position in zip(TABLE_JOINTS, positions, strict=True):
            self._set_joint(joint, position)

    def observe(self) -> NDArray[np.float64]:
        """Return `scene_obs` [24], as described in the module docstring."""
        return self._state(self.joints(), self._read_poses())

    def info(self) -> dict[str, Any]:
        """Return what the task oracle reads of table, doors, lights and blocks."""
        return self._description(self.joints(), self._read_poses())

    def observe_with_info(self) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Return `observe` and `info` of the same moment, with one reading of the simulation."""
        joints = self.joints()
        poses = self._read_poses()
        return self._state(joints, poses), self._description(joints, poses)

    def _read_poses(self) -> list[Pose]:
        """Return the poses of the blocks, in scene order."""
        return [self._physics.getBasePositionAndOrientation(uid) for uid in self.blocks.values()]

    def _state(self, joints: list[float], poses: list[Pose]) -> NDArray[np.float64]:
        """Return `scene_obs` from joints and poses that were read before."""
        values = [*joints, *(light.state for light in self._lights.values())]
        for position, orientation in poses:
            # Euler angles, although PyBullet gives quaternions: the published format has them.
            values += (*position, *self._physics.getEulerFromQuaternion(orientation))
        return np.array(values, np.float64)

    def _description(self, joints: list[float], poses: list[Pose]) -> dict[str, Any]:
        """Return what `info` returns, from joints and poses that were read before."""
        slide, drawer, button, switch = joints
        table_contacts = self._physics.getContactPoints(bodyA=self.table_uid)
        blocks = {}
        for (name, uid), (position, orientation) in zip(self.blocks.items(), poses, strict=True):
            linear, angular = self._physics.getBaseVelocity(uid)
            blocks[name] = {
                "current_pos": position,
                "current_orn": orientation,
                "current_lin_vel": linear,
                "current_ang_vel": angular,
                "contacts": self._physics.getContactPoints(bodyA=uid),
                "uid": uid,
            }
        return {
            "fixed_objects": {"table": {"uid": self.table_uid, "links": dict(self.links), "contacts": table_contacts}},
            "movable_objects": blocks,
            "doors": {
                joint: {"current_state": value} for joint, value in zip(DOOR_JOINTS, (slide, drawer), strict=True)
            },
            "buttons": {BUTTON_JOINT: {"joint_state": button, "logical_state": self._button_state}},
            "switches": {SWITCH_JOINT: {"joint_state": switch, "logical_state": self._switch_state}},
            "lights": {name: {"logical_state": light.state} for name, light in self._lights.items()},
        }

    def _sample_pose(self, rng: np.random.Generator) -> tuple[list[float], tuple[float, ...]]:
        """Return a random position [3] and quaternion [4] of a block."""
        position, euler = sample_pose(self.table, rng)
        return position.tolist(), self._physics.getQuaternionFromEuler(euler.tolist())

    def _find_joints(self, urdf: Path) -> tuple[dict[str, int], dict[str, int]]:
        """Return the index of each joint and of each link of the table, by name."""
        joints: dict[str, int] = {}
        links: dict[str, int] = {}
        for index in range(self._physics.getNumJoints(self.table_uid)):
            entry = self._physics.getJointInfo(self.table_uid, index)  # 1: name of the joint, 12: of its child link
            joints[entry[1].decode()] = index
            links[entry[12].decode()] = index
        # PyBullet's number of the base, which getJointInfo does not list.
        links["base_link"] = -1
        missing = [name for name in (*TABLE_JOINTS, *TABLE_LINKS) if name not in {**joints, **links}]
        if missing:
            raise InputError(
                f"assets: {urdf} describes no CALVIN table; it lacks {', '.join(missing)}. Restore the file, or give "
                'assets="builtin"'
            )
        self._table_joints = [joints[name] for name in TABLE_JOINTS]
        return joints, links

    def _set_joint(self, joint: str, value: float) -> None:
        self._physics.resetJointState(self.table_uid, self._joints[joint], targetValue=float(value), targetVelocity=0)

    def _reset_button(self, value: float) -> None:
        self._set_joint(BUTTON_JOINT, value)
        # Quirk: the button takes the state of the LED, whatever that was before the reset.
        self._button_state = self._lights["led"].state

    def _reset_switch(self, value: float) -> None:
        self._set_joint(SWITCH_JOINT, value)
        self._switch_state = 0


@dataclass(frozen=True)
class SceneFiles:
    """Paths of a scene's URDF files in the assets directory (the layout of `calvin_env/data`)."""

    blocks: tuple[str, ...]
    table: str
    plane: str = "plane/plane.urdf"
    robot: str = "franka_panda/panda_longer_finger.urdf"


def scene_files(name: str) -> SceneFiles:
    """Return the URDF files of a scene."""
    return SceneFiles(
        blocks=tuple(f"blocks/block_{color}_{size}.urdf" for color, size in SCENES[name].blocks),
        table=f"calvin_table_{name}/urdf/calvin_table_{name}.urdf",
    )
