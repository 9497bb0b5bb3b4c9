"""Commands in meters and radians, for stacks that do not know CALVIN's units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError


class MetricUnits:
    """What one unit of a policy's actions is.

    Args:
        position_m: of dx, dy, dz, in meters; another policy than CALVIN's, or another stack, may have other units.
        rotation_rad: of droll, dpitch, dyaw, in radians.

    Raises:
        InputError: one of them is not positive.
    """

    def __init__(self, *, position_m: float = POSITION_UNIT_M, rotation_rad: float = ROTATION_UNIT_RAD) -> None:
        if not (0 < position_m < np.inf and 0 < rotation_rad < np.inf):
            raise InputError(f"units must be positive, found {position_m} m and {rotation_rad} rad")
        self._scale = np.array([position_m] * 3 + [rotation_rad] * 3 + [1.0])

    def convert(self, commands: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return commands [..., 7] with meters, radians (fixed-axis x-y-z Euler angles) and the gripper as it was."""
        return np.asarray(commands * self._scale, dtype=np.float64)


def rotation_vector(euler: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return fixed-axis x-y-z Euler angles [..., 3] as axis times angle, of at most pi."""
    half = np.asarray(euler, dtype=np.float64) / 2
    (sx, sy, sz), (cx, cy, cz) = np.moveaxis(np.sin(half), -1, 0), np.moveaxis(np.cos(half), -1, 0)
    # The quaternion of the rotation about z after that about y after that about x.
    scalar = cx * cy * cz + sx * sy * sz
    vector = np.stack([sx * cy * cz - cx * sy * sz, cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz], axis=-1)
    sign = np.where(scalar < 0, -1.0, 1.0)  # a quaternion and its negative are one rotation; this one is the shorter
    sine = np.linalg.norm(vector, axis=-1)
    angle = 2 * np.arctan2(sine, scalar * sign)
    # For small rotations angle and sine vanish together.
    factor = np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)
    return vector * (sign * factor)[..., None]
