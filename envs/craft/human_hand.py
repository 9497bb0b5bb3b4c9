"""A free-flying hand: palm, thumb and three fingers of two segments each, wrist and sleeve; nothing collides with it.

It has the members of `other_robots.arm.TableArm`, so a script moves either. The grip point lies between thumb and
fingers, which close across `yaw`; all parts follow it without physics, and are posed when the hand is commanded.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..physics import Physics
from ..rerendering.textures import Color

Floats = NDArray[np.float64]
OPEN_M = 0.036
"""from the middle to a finger's tip, with open fingers"""
CLOSE_SPEED = 0.15
"""of a finger, m/s"""
FINGER_RADIUS = 0.0085
FINGERS_M = (-0.019, 0.0, 0.019)
"""of the three fingers beside the grip point, along the hand's own y axis"""
KNUCKLE = (0.040, 0.062)
"""of thumb and fingers: away from the grip point, and above it"""
BENT_M = 0.016
"""by which the middle joint of a finger stands out between knuckle and tip"""
PALM_EDGES = (0.074, 0.062, 0.026)
PALM_HEIGHT_M = 0.074
ELBOW_RISE = 0.5
"""of the forearm, radians"""
WRIST_ROTATION = 0.35
"""share of the yaw that the forearm follows, up to `MOST_YAW`"""
MOST_YAW = 1.0


class HumanHand:
    """A hand at a grip point.

    Args:
        physics: the simulation that it is drawn in.
        skin: color of the hand.
        sleeve: color of the sleeve.
        elbow: azimuth from the hand to its elbow, radians.
        closed_m: where each finger stops when it closes, in meters from the middle.
        hz: commands a second, which the speed of the fingers counts in.
    """

    def __init__(
        self, physics: Physics, *, skin: Color, sleeve: Color, elbow: float, closed_m: float, hz: float
    ) -> None:
        self._physics = physics
        self._elbow = elbow
        self._closed_m = closed_m
        self._most_m = CLOSE_SPEED / hz
        self._opening_m = OPEN_M
        self._position = np.zeros(3)
        self._yaw = 0.0
        half = [edge / 2 for edge in PALM_EDGES]
        self._palm = self._add(physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=(*skin, 1)))
        # Lengths of capsules are fixed when they are made: a finger's segments keep theirs, and its joint gives way.
        self._segments = [self._add_capsule(FINGER_RADIUS, 0.030, skin) for _ in range(2 * (len(FINGERS_M) + 1))]
        self._wrist = self._add_capsule(0.021, 0.07, skin)
        self._sleeve = self._add_capsule(0.030, 0.34, sleeve)

    def place(self, position: Floats, yaw: float) -> None:
        """Go to a pose with open fingers."""
        self._opening_m = OPEN_M
        self.command(position, yaw, closed=False)

    def command(self, position: Floats, yaw: float, *, closed: bool) -> None:
        """Go to a pose at once; the fingers move on, open or closed, at `CLOSE_SPEED`.

        Args:
            position: of the grip point [3], meters.
            yaw: across which the fingers close, radians.
            closed: whether they close.
        """
        self._position, self._yaw = position.copy(), yaw
        target = self._closed_m if closed else OPEN_M
        self._opening_m += float(np.clip(target - self._opening_m, -self._most_m, self._most_m))
        across = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
        # Of the two directions across the fingers, the palm takes the one that is nearer to the elbow.
        forearm = self._elbow + WRIST_ROTATION * float(np.clip(yaw, -MOST_YAW, MOST_YAW))
        back = np.array([math.cos(yaw), math.sin(yaw), 0.0])
        if back @ [math.cos(forearm), math.sin(forearm), 0.0] < 0:
            back = -back
        up = np.array([0.0, 0.0, 1.0])
        self._move(self._palm, position + 0.012 * back + PALM_HEIGHT_M * up, yaw=yaw)
        tips = [(1.0, offset) for offset in FINGERS_M] + [(-1.0, 0.0)]  # the thumb stands opposite
        for number, (side, offset) in enumerate(tips):
            tip = position + side * (self._opening_m + FINGER_RADIUS) * across + offset * back
            knuckle = position + side * KNUCKLE[0] * across + (offset + 0.008) * back + KNUCKLE[1] * up
            middle = (tip + knuckle) / 2 + side * BENT_M * across
            self._span(self._segments[2 * number], tip, middle)
            self._span(self._segments[2 * number + 1], middle, knuckle)
        way = np.array(
            [math.cos(forearm) * math.cos(ELBOW_RISE), math.sin(forearm) * math.cos(ELBOW_RISE), math.sin(ELBOW_RISE)]
        )
        root = position + PALM_HEIGHT_M * up + 0.02 * back
        self._span(self._wrist, root, root + 0.09 * way)
        self._span(self._sleeve, root + 0.08 * way, root + 0.48 * way)

    def tool(self) -> tuple[Floats, Floats]:
        """Return position [3] and fixed-axis Euler angles [3] of the grip point."""
        return self._position, np.array([math.pi, 0.0, self._yaw])

    def _add_capsule(self, radius: float, length: float, color: Color) -> int:
        physics = self._physics
        return self._add(
            physics.createVisualShape(physics.GEOM_CAPSULE, radius=radius, length=length, rgbaColor=(*color, 1))
        )

    def _add(self, visual: int) -> int:
        body: int = self._physics.createMultiBody(0, -1, visual)
        return body

    def _move(self, body: int, position: Floats, *, yaw: float) -> None:
        orientation = self._physics.getQuaternionFromEuler((0.0, 0.0, yaw + math.pi / 2))
        self._physics.resetBasePositionAndOrientation(body, position.tolist(), orientation)

    def _span(self, body: int, start: Floats, end: Floats) -> None:
        """Put a capsule, which lies along its own z axis, between two points."""
        x, y, z = ((end - start) / np.linalg.norm(end - start)).tolist()
        orientation = self._physics.getQuaternionFromEuler((0.0, math.acos(z), math.atan2(y, x)))
        self._physics.resetBasePositionAndOrientation(body, ((start + end) / 2).tolist(), orientation)
