"""The arms of re-rendered videos: CALVIN's, with the recorded joints, and others that follow the recorded tool.

Another arm stands where it reaches the tool's whole path within a centimeter: places about the table are sampled until
it does. Its joints come from inverse kinematics, each frame's from those of the frame before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..other_robots.arm import ARM_JOINTS, ASSETS, HOME, LEFT_FINGER, OPEN_M, RIGHT_FINGER, TOOL
from ..physics import Physics
from ..robot import MOTORS, Panda

Floats = NDArray[np.float64]
Part = tuple[int, int]
MOST_PLACES = 6
"""sampled before an arm gives up"""
TOLERANCE_M = 0.01
FIRST_SOLUTIONS = 30
"""of the first frame; each begins at the one before and comes nearer"""
SOLUTIONS = 2
"""of every other frame"""
PLACES = ((-0.5, -0.65, 0.2), (-0.15, -0.45, 0.42))
"""Where another arm may stand: low and high corner."""
SIZES = (1.0, 1.25)
WORKSPACE = (0.05, 0.0)
"""which another arm faces"""


@dataclass(frozen=True)
class Arm:
    """An arm and its joints throughout a video of L frames."""

    uid: int
    joints: tuple[int, ...]
    positions: Floats
    """[L, J], of its J joints"""
    static_parts: tuple[Part, ...]
    """(body, link) of the parts that never move"""

    def set_frame(self, physics: Physics, frame: int) -> None:
        """Go to the joints of a frame."""
        for joint, position in zip(self.joints, self.positions[frame].tolist(), strict=True):
            physics.resetJointState(self.uid, joint, position)


def load_panda(physics: Physics, urdf: Path, robot_obs: Floats) -> Arm:
    """Load CALVIN's arm.

    Args:
        physics: the simulation.
        urdf: the arm's URDF file.
        robot_obs: recorded states [L, 15].
    """
    panda = Panda(physics, urdf)
    fingers = robot_obs[:, [6, 6]] / 2
    return Arm(panda.uid, MOTORS, np.concatenate([robot_obs[:, 7:14], fingers], axis=1), panda.static_parts)


def load_other_arm(physics: Physics, embodiment: str, robot_obs: Floats, rng: np.random.Generator) -> Arm | None:
    """Load another arm where it can follow the recorded tool; None if no such place was found.

    Args:
        physics: the simulation.
        embodiment: a name of `HOME`.
        robot_obs: recorded states [L, 15].
        rng: generator of its place and size.
    """
    for _ in range(MOST_PLACES):
        x, y, z = rng.uniform(*PLACES).tolist()
        facing = math.atan2(WORKSPACE[1] - y, WORKSPACE[0] - x)
        uid = physics.loadURDF(
            str(ASSETS / embodiment / "arm.urdf"),
            (x, y, z),
            physics.getQuaternionFromEuler((0, 0, facing)),
            useFixedBase=True,
            globalScaling=float(rng.uniform(*SIZES)),
        )
        arm_joints = _follow(physics, uid, HOME[embodiment], robot_obs[:, :6])
        if arm_joints is not None:
            pedestal = physics.createVisualShape(physics.GEOM_CYLINDER, radius=0.12, length=z)
            pedestal_uid = physics.createMultiBody(0, -1, pedestal, (x, y, z / 2))
            fingers = np.clip(robot_obs[:, [6, 6]] / 2, 0, OPEN_M)
            positions = np.concatenate([arm_joints, fingers], axis=1)
            return Arm(uid, (*ARM_JOINTS, LEFT_FINGER, RIGHT_FINGER), positions, ((uid, -1), (pedestal_uid, -1)))
        physics.removeBody(uid)
    return None


def _follow(physics: Physics, uid: int, home: tuple[float, ...], poses: Floats) -> Floats | None:
    """Return the joints [L, 7] for tool poses [L, 6]; None if the arm misses one of them."""
    limits = [physics.getJointInfo(uid, joint)[8:10] for joint in ARM_JOINTS]
    joints: list[float] = list(home)
    path = np.empty((len(poses), len(ARM_JOINTS)))
    for frame, pose in enumerate(poses):
        position = pose[:3].tolist()
        orientation = physics.getQuaternionFromEuler(pose[3:].tolist())
        for _ in range(SOLUTIONS if frame else FIRST_SOLUTIONS):
            found = physics.calculateInverseKinematics(uid, TOOL, position, orientation)
            joints = [max(low, min(high, value)) for value, (low, high) in zip(found[:7], limits, strict=True)]
            for joint, value in zip(ARM_JOINTS, joints, strict=True):
                physics.resetJointState(uid, joint, value)
        reached = physics.getLinkState(uid, TOOL, computeForwardKinematics=True)[4]
        if math.dist(reached, position) > TOLERANCE_M:
            return None
        path[frame] = joints
    return path
