"""One of three seven-joint arms with a two-finger gripper, which follows a commanded tool pose by its motors.

Meters and radians; the arm stands at the origin and reaches along +x. The tool points down, `yaw` rotates it about z,
and the fingers close across it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..physics import Physics

Floats = NDArray[np.float64]
ASSETS = Path(__file__).parents[1] / "assets" / "other_robots"
ARM_JOINTS = tuple(range(7))
LEFT_FINGER = 8
RIGHT_FINGER = 9
TOOL = 10
HOME = {
    "iiwa": (0.0, 0.55, 0.0, -1.45, 0.0, 1.14, 0.0),
    "xarm": (0.0, 0.0, 0.0, 1.2, 0.0, 1.2, 0.0),
    "gen3": (0.0, 0.5, 0.0, 1.5, 0.0, 1.1, 0.0),
}
"""Joint angles of each arm with the tool in front of it and pointing down; inverse kinematics start from here."""
OPEN_M = 0.036  # per finger
ARM_FORCE = 250.0
CLOSE_FORCE = 25.0
OPEN_FORCE = 10.0
FINGER_SPEED = 0.25
FIRST_SOLUTIONS = 20
"""of the start; each solution of the inverse kinematics begins at the one before and comes nearer"""


class TableArm:
    """An arm that is placed, without simulating, at a tool pose with open fingers.

    Args:
        physics: the simulation that it is loaded into.
        embodiment: a key of `HOME`.
        closed_m: where each finger stops when it closes, in meters from the middle.
    """

    def __init__(self, physics: Physics, embodiment: str, *, closed_m: float = 0.0) -> None:
        self._physics = physics
        self._home = HOME[embodiment]
        self._closed_m = closed_m
        self.uid: int = physics.loadURDF(str(ASSETS / embodiment / "arm.urdf"), (0, 0, 0), useFixedBase=True)
        self._limits = [physics.getJointInfo(self.uid, joint)[8:10] for joint in ARM_JOINTS]
        # A gear between the fingers keeps them symmetric, as in the Panda's gripper.
        gear = physics.createConstraint(
            self.uid, LEFT_FINGER, self.uid, RIGHT_FINGER, physics.JOINT_GEAR, (1, 0, 0), (0, 0, 0), (0, 0, 0)
        )
        physics.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)

    def place(self, position: Floats, yaw: float) -> None:
        """Set the joints, without simulating, to a tool pose, and hold it with open fingers."""
        joints: list[float] = list(self._home)
        for _ in range(FIRST_SOLUTIONS):
            for joint, angle in zip(ARM_JOINTS, joints, strict=True):
                self._physics.resetJointState(self.uid, joint, angle)
            joints = self._solve(position, yaw)
        for finger in (LEFT_FINGER, RIGHT_FINGER):
            self._physics.resetJointState(self.uid, finger, OPEN_M)
        self.command(position, yaw, closed=False)

    def command(self, position: Floats, yaw: float, *, closed: bool) -> None:
        """Set the targets of the motors; they hold until the next command.

        Args:
            position: of the tool [3], meters.
            yaw: of the tool, radians.
            closed: whether the fingers close.
        """
        joints = self._solve(position, yaw)
        self._physics.setJointMotorControlArray(
            self.uid, ARM_JOINTS, self._physics.POSITION_CONTROL, targetPositions=joints, forces=[ARM_FORCE] * 7
        )
        target = self._closed_m if closed else OPEN_M
        force = CLOSE_FORCE if closed else OPEN_FORCE
        for finger in (LEFT_FINGER, RIGHT_FINGER):
            self._physics.setJointMotorControl2(
                self.uid, finger, self._physics.POSITION_CONTROL, target, force=force, maxVelocity=FINGER_SPEED
            )

    def tool(self) -> tuple[Floats, Floats]:
        """Return position [3] and fixed-axis Euler angles [3] of the point between the finger pads."""
        state = self._physics.getLinkState(self.uid, TOOL, computeForwardKinematics=True)
        return np.array(state[4]), np.array(self._physics.getEulerFromQuaternion(state[5]))

    def _solve(self, position: Floats, yaw: float) -> list[float]:
        """Return the joint angles of a tool pose.

        Bullet's solver starts from the present joints; its null-space form misses by centimeters for these arms.
        """
        orientation = self._physics.getQuaternionFromEuler((math.pi, 0.0, yaw))
        found = self._physics.calculateInverseKinematics(self.uid, TOOL, position.tolist(), orientation)
        return [max(low, min(high, joint)) for joint, (low, high) in zip(found[:7], self._limits, strict=True)]
