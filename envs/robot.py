"""The Panda arm with its two-finger gripper in PyBullet: joints, motors, inverse kinematics.

Units are meters, radians and Newtons; Euler angles are fixed-axis x-y-z, quaternions (x, y, z, w). The numbers are
those of the reference environment. Quirks kept on purpose, because recordings depend on them:

- Relative actions accumulate on a stored target pose that only a reset sets; while the arm is blocked, the target moves
  away from it.
- The tool pose is read as the solver left it, one physics step (1/240 s) behind the joint angles.
- The gripper command shown after a reset is the last one before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError

from .actions import Command
from .physics import Physics

BASE_POSITION = (-0.34, -0.46, 0.24)
ARM_JOINTS = tuple(range(7))
FINGER_JOINTS = (9, 11)
MOTORS = ARM_JOINTS + FINGER_JOINTS
GRIPPER_CAMERA_LINK = 14
TCP_LINK = 15
_LINKS = {
    0: "panda_link1",
    6: "panda_link7",
    9: "panda_leftfinger",
    11: "panda_rightfinger",
    14: "gripper_cam",
    15: "tcp",
}

INITIAL_ARM = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
ARM_LOWER = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
ARM_UPPER = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
FINGER_OPEN_M = 0.04

ARM_FORCE = 200
ARM_MAX_VELOCITY = 2
FINGER_FORCE = {1: 2, -1: 200}  # by gripper command: open, close
FINGER_MAX_VELOCITY = 1

# Null-space form of Bullet's inverse kinematics, over 7 arm and 2 finger joints, with limits wider than the arm's.
_IK_LOWER = [-7.0] * len(MOTORS)
_IK_UPPER = [7.0] * len(MOTORS)
_MAX_NORM = 1e6  # of a position in meters, or a quaternion; the solver returns for smaller ones
_IK_REST = [*INITIAL_ARM, FINGER_OPEN_M, FINGER_OPEN_M]

ROBOT_OBS_SIZE = 15


class Panda:
    """The arm, loaded into `physics` on construction: URDF (uid 0 in a fresh simulation), then its base cylinder.

    Args:
        physics: the simulation.
        urdf: the arm's URDF file.

    Raises:
        InputError: the file describes another robot.
    """

    def __init__(self, physics: Physics, urdf: Path) -> None:
        self._physics = physics
        self.uid: int = physics.loadURDF(
            str(urdf), basePosition=BASE_POSITION, baseOrientation=(0, 0, 0, 1), useFixedBase=True
        )
        # The white pedestal: visual only. It takes uid 1; later uids, and with them recordings, depend on it.
        pedestal = physics.createVisualShape(
            shapeType=physics.GEOM_CYLINDER,
            radius=0.13,
            length=0.24,
            rgbaColor=[1, 1, 1, 1],
            visualFramePosition=[-0.39, -0.46, 0.12],
        )
        pedestal_uid: int = physics.createMultiBody(baseMass=0, baseVisualShapeIndex=pedestal)
        self.static_parts = ((self.uid, -1), (pedestal_uid, -1))
        """(body, link) of the parts that never move: the arm's base and the pedestal."""
        # A gear between the fingers keeps them symmetric.
        gear = physics.createConstraint(
            self.uid,
            FINGER_JOINTS[0],
            self.uid,
            FINGER_JOINTS[1],
            jointType=physics.JOINT_GEAR,
            jointAxis=[1, 0, 0],
            parentFramePosition=[0, 0, 0],
            childFramePosition=[0, 0, 0],
        )
        physics.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
        # This file addresses joints and links by number, so another arm is refused.
        count = physics.getNumJoints(self.uid)
        found = {index: physics.getJointInfo(self.uid, index)[12].decode() for index in _LINKS if index < count}
        if found != _LINKS:
            raise InputError(
                f"assets: {urdf} is not CALVIN's arm: expected the links {_LINKS}, found {found}. Restore the file, or "
                'give assets="builtin"'
            )
        self.gripper_action = 1
        self._target_position = np.zeros(3)
        self._target_euler = np.zeros(3)
        self.reset(None)

    def reset(self, robot_obs: NDArray[np.float64] | None) -> None:
        """Set the joints to those of `robot_obs` [15], whose tool pose and gripper command are ignored; None: home."""
        physics = self._physics
        arm = INITIAL_ARM if robot_obs is None else robot_obs[7:14].tolist()
        # `robot_obs` holds the opening width, which both fingers share.
        finger = FINGER_OPEN_M if robot_obs is None else float(robot_obs[6] / 2)
        for joint, value in zip(MOTORS, (*arm, finger, finger), strict=True):
            physics.resetJointState(self.uid, jointIndex=joint, targetValue=value, targetVelocity=0)
        self._drive(arm, finger, finger_force=FINGER_FORCE[-1])
        position, orientation = self.tcp_pose()
        # The stored target starts at the tool's pose after a reset.
        self._target_position = np.array(position)
        self._target_euler = np.array(physics.getEulerFromQuaternion(orientation))

    def apply(self, command: Command) -> None:
        """Set the targets of the motors; they hold until the next call."""
        values = command.values
        if command.kind == "joint_abs":
            arm = values
        elif command.kind == "joint_rel":
            arm = self.arm_angles() + values
        elif command.kind == "cartesian_abs":
            arm = self._inverse_kinematics(values[:3], values[3:])
        else:
            position = self._target_position + values[:3] * POSITION_UNIT_M
            euler = self._target_euler + values[3:6] * ROTATION_UNIT_RAD
            arm = self._inverse_kinematics(position, euler)  # raises before the stored target has moved
            self._target_position = position
            self._target_euler = euler
        self.gripper_action = command.gripper
        finger = FINGER_OPEN_M if command.gripper == 1 else 0.0
        self._drive(arm.tolist(), finger, finger_force=FINGER_FORCE[command.gripper])

    def joints(self) -> list[float]:
        """Return the nine measured joints: seven of the arm, left finger, right finger."""
        return [state[0] for state in self._physics.getJointStates(self.uid, MOTORS)]

    def arm_angles(self) -> NDArray[np.float64]:
        """Return the seven measured arm joints, radians."""
        return np.array(self.joints()[: len(ARM_JOINTS)])

    def opening_width(self) -> float:
        """Return the distance between the fingers, 0 to 0.08 m."""
        left, right = self.joints()[len(ARM_JOINTS) :]
        return left + right

    def tcp_pose(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return position [3] and quaternion [4] of the tool, one physics step old (module docstring)."""
        position, orientation = self._physics.getLinkState(self.uid, TCP_LINK)[:2]
        return position, orientation

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the stored target on which relative actions accumulate: position [3] and Euler angles [3] (copies)."""
        return self._target_position.copy(), self._target_euler.copy()

    def observe(self) -> NDArray[np.float64]:
        """Return `robot_obs` [15]: tool position, Euler angles, opening width, arm joints, last gripper command."""
        position, orientation = self.tcp_pose()
        euler = self._physics.getEulerFromQuaternion(orientation)
        *arm, left, right = self.joints()
        return np.array([*position, *euler, left + right, *arm, self.gripper_action], np.float64)

    def info(self, robot_obs: NDArray[np.float64] | None = None) -> dict[str, Any]:
        """Return what the task oracle reads of the robot, from `robot_obs` if given."""
        robot_obs = self.observe() if robot_obs is None else robot_obs.copy()
        return {
            "tcp_pos": robot_obs[0:3],
            "tcp_orn": robot_obs[3:6],
            "gripper_opening_width": robot_obs[6],
            "arm_joint_states": robot_obs[7:14],
            "gripper_action": self.gripper_action,
            "uid": self.uid,
            "contacts": self._physics.getContactPoints(bodyA=self.uid),
        }

    def _inverse_kinematics(
        self, position: NDArray[np.float64], orientation: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the arm joints of a tool pose; `orientation` is Euler angles [3] or a quaternion [4]."""
        quaternion = orientation
        if orientation.size == 3:
            quaternion = self._physics.getQuaternionFromEuler(orientation.tolist())
        # Bullet's solver never returns from the poses that are refused here. NaN fails the comparison, too.
        if not (1 / _MAX_NORM < math.hypot(*quaternion) < _MAX_NORM and math.hypot(*position) < _MAX_NORM):
            raise InputError(
                f"action: no pose of the tool: position {position.tolist()}, quaternion {tuple(quaternion)}; "
                "expected meters and a quaternion of length 1 (or Euler angles in radians). Nothing has moved"
            )
        # One value per movable joint: seven of the arm, then those of the fingers.
        joints = self._physics.calculateInverseKinematics(
            self.uid,
            TCP_LINK,
            position.tolist(),
            list(quaternion),
            lowerLimits=_IK_LOWER,
            upperLimits=_IK_UPPER,
            jointRanges=_IK_UPPER,
            restPoses=_IK_REST,
        )
        return np.minimum(np.maximum(joints[: len(ARM_JOINTS)], ARM_LOWER), ARM_UPPER)

    def _drive(self, arm: Sequence[float], finger: float, *, finger_force: float) -> None:
        """Set the targets of all motors: seven angles of the arm, the position of both fingers in meters."""
        # One call per motor: the call that takes a list with maximum velocities gives other trajectories (tried).
        set_motor = self._physics.setJointMotorControl2
        mode = self._physics.POSITION_CONTROL
        for joint, angle in zip(ARM_JOINTS, arm, strict=True):
            set_motor(self.uid, joint, mode, targetPosition=angle, force=ARM_FORCE, maxVelocity=ARM_MAX_VELOCITY)
        for joint in FINGER_JOINTS:
            set_motor(self.uid, joint, mode, targetPosition=finger, force=finger_force, maxVelocity=FINGER_MAX_VELOCITY)
