"""The Panda arm with its two-finger gripper in PyBullet: joints, motors, inverse kinematics (specification, section 2).

Units are metres, radians and Newtons; Euler angles are fixed-axis x-y-z, quaternions (x, y, z, w). The numbers are
those of the reference environment. Quirks kept on purpose, because recordings depend on them:

- Relative actions accumulate on a stored target pose that only a reset sets, so a blocked arm lets the target run away.
- The tool pose is read as the solver left it, one physics step (1/240 s) behind the joint angles.
- The gripper command shown after a reset is the last one before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import POSITION_UNIT_M, ROTATION_UNIT_RAD

from .actions import Command
from .physics import Physics

BASE_POSITION = (-0.34, -0.46, 0.24)
ARM_JOINTS = tuple(range(7))
FINGER_JOINTS = (9, 11)
GRIPPER_CAMERA_LINK = 14
TCP_LINK = 15

INITIAL_ARM = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
ARM_LOWER = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
ARM_UPPER = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
FINGER_OPEN_M = 0.04

ARM_FORCE = 200
ARM_MAX_VELOCITY = 2
FINGER_FORCE = {1: 2, -1: 200}  # by gripper command: open, close
FINGER_MAX_VELOCITY = 1

# The null-space form of Bullet's inverse kinematics, over 7 arm and 2 finger joints, with limits wider than the arm's.
_IK_BOUND = 7.0
_IK_JOINTS = 9

ROBOT_OBS_SIZE = 15


class Panda:
    """The arm, loaded into `physics` on construction: URDF (uid 0 in a fresh simulation), then its base cylinder."""

    def __init__(self, physics: Physics, urdf: Path) -> None:
        self._physics = physics
        self.uid: int = physics.loadURDF(
            str(urdf), basePosition=BASE_POSITION, baseOrientation=(0, 0, 0, 1), useFixedBase=True
        )
        self._add_base_cylinder()
        self._couple_fingers()
        self.gripper_action = 1
        self._target_position = np.zeros(3)
        self._target_euler = np.zeros(3)
        self.reset(None)

    def reset(self, robot_obs: NDArray[np.float64] | None) -> None:
        """Put the joints where `robot_obs` [15] has them (tool pose and gripper command in it are ignored), or home."""
        physics = self._physics
        arm = INITIAL_ARM if robot_obs is None else robot_obs[7:14]
        finger = FINGER_OPEN_M if robot_obs is None else robot_obs[6] / 2
        for joint, angle in zip(ARM_JOINTS, arm, strict=True):
            physics.resetJointState(self.uid, jointIndex=joint, targetValue=angle, targetVelocity=0)
            self._drive_arm_joint(joint, angle)
        for joint in FINGER_JOINTS:
            physics.resetJointState(self.uid, jointIndex=joint, targetValue=finger, targetVelocity=0)
            self._drive_finger(joint, finger, force=FINGER_FORCE[-1])
        position, orientation = self.tcp_pose()
        self._target_position = np.array(position)
        self._target_euler = np.array(physics.getEulerFromQuaternion(orientation))

    def apply(self, command: Command) -> None:
        """Set the motors to follow `command`; they keep their targets until the next call."""
        for joint, angle in zip(ARM_JOINTS, self._arm_target(command), strict=True):
            self._drive_arm_joint(joint, angle)
        self.gripper_action = command.gripper
        opening = FINGER_OPEN_M if command.gripper == 1 else 0.0
        for joint in FINGER_JOINTS:
            self._drive_finger(joint, opening, force=FINGER_FORCE[command.gripper])

    def arm_angles(self) -> NDArray[np.float64]:
        """The seven measured arm joints."""
        return np.array([self._physics.getJointState(self.uid, joint)[0] for joint in ARM_JOINTS])

    def opening_width(self) -> float:
        """Distance between the fingers, 0 to 0.08 m."""
        left, right = (self._physics.getJointState(self.uid, joint)[0] for joint in FINGER_JOINTS)
        return float(left + right)

    def tcp_pose(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Position and quaternion of the tool, one physics step old (module docstring)."""
        position, orientation = self._physics.getLinkState(self.uid, TCP_LINK)[:2]
        return position, orientation

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The stored target on which relative actions accumulate: position and Euler angles (copies)."""
        return self._target_position.copy(), self._target_euler.copy()

    def observe(self) -> NDArray[np.float64]:
        """`robot_obs` [15]: tool position, tool Euler angles, opening width, arm joints, last gripper command."""
        position, orientation = self.tcp_pose()
        euler = self._physics.getEulerFromQuaternion(orientation)
        return np.array([*position, *euler, self.opening_width(), *self.arm_angles(), float(self.gripper_action)])

    def info(self) -> dict[str, Any]:
        """What the oracle may ask about the robot (specification, section 10)."""
        robot_obs = self.observe()
        return {
            "tcp_pos": robot_obs[0:3],
            "tcp_orn": robot_obs[3:6],
            "gripper_opening_width": robot_obs[6],
            "arm_joint_states": robot_obs[7:14],
            "gripper_action": self.gripper_action,
            "uid": self.uid,
            "contacts": self._physics.getContactPoints(bodyA=self.uid),
        }

    def _arm_target(self, command: Command) -> NDArray[np.float64]:
        values = command.values
        if command.kind == "joint_abs":
            return values
        if command.kind == "joint_rel":
            return self.arm_angles() + values
        if command.kind == "cartesian_rel":
            self._target_position = self._target_position + values[:3] * POSITION_UNIT_M
            self._target_euler = self._target_euler + values[3:6] * ROTATION_UNIT_RAD
            return self._inverse_kinematics(self._target_position, self._target_euler)
        return self._inverse_kinematics(values[:3], values[3:])

    def _inverse_kinematics(
        self, position: NDArray[np.float64], orientation: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Arm joints for a tool pose; `orientation` is Euler angles [3] or a quaternion [4]."""
        quaternion = orientation
        if orientation.size == 3:
            quaternion = self._physics.getQuaternionFromEuler(orientation.tolist())
        joints = self._physics.calculateInverseKinematics(
            self.uid,
            TCP_LINK,
            list(position),
            list(quaternion),
            lowerLimits=[-_IK_BOUND] * _IK_JOINTS,
            upperLimits=[_IK_BOUND] * _IK_JOINTS,
            jointRanges=[_IK_BOUND] * _IK_JOINTS,
            restPoses=[*INITIAL_ARM, FINGER_OPEN_M, FINGER_OPEN_M],
        )
        angles: NDArray[np.float64] = np.clip(joints[: len(ARM_JOINTS)], ARM_LOWER, ARM_UPPER)
        return angles

    def _drive_arm_joint(self, joint: int, angle: float) -> None:
        self._physics.setJointMotorControl2(
            bodyIndex=self.uid,
            jointIndex=joint,
            controlMode=self._physics.POSITION_CONTROL,
            targetPosition=angle,
            force=ARM_FORCE,
            maxVelocity=ARM_MAX_VELOCITY,
        )

    def _drive_finger(self, joint: int, position: float, *, force: float) -> None:
        self._physics.setJointMotorControl2(
            bodyIndex=self.uid,
            jointIndex=joint,
            controlMode=self._physics.POSITION_CONTROL,
            targetPosition=position,
            force=force,
            maxVelocity=FINGER_MAX_VELOCITY,
        )

    def _add_base_cylinder(self) -> None:
        """The white pedestal: visual only. It takes uid 1; later uids, and with them recordings, count on it."""
        shape = self._physics.createVisualShape(
            shapeType=self._physics.GEOM_CYLINDER,
            radius=0.13,
            length=0.24,
            rgbaColor=[1, 1, 1, 1],
            visualFramePosition=[-0.39, -0.46, 0.12],
        )
        self._physics.createMultiBody(baseMass=0, baseVisualShapeIndex=shape)

    def _couple_fingers(self) -> None:
        left, right = FINGER_JOINTS
        gear = self._physics.createConstraint(
            self.uid,
            left,
            self.uid,
            right,
            jointType=self._physics.JOINT_GEAR,
            jointAxis=[1, 0, 0],
            parentFramePosition=[0, 0, 0],
            childFramePosition=[0, 0, 0],
        )
        self._physics.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
