"""Actions: the forms in which the arm can be commanded, checked and converted to a `Command`.

| form | meaning |
|---|---|
| array of 7 | relative Cartesian, 3 position (unit 0.02 m), 3 Euler (unit 0.05 rad), gripper by its sign |
| tuple (position, Euler angles or quaternion, gripper) | absolute Cartesian, meters and radians |
| dict type="cartesian_rel", action=7 numbers | as the first row |
| dict type="cartesian_abs", action=the tuple, 7 (Euler) or 8 (quaternion) numbers | absolute Cartesian |
| dict type="joint_abs", action=8 numbers | arm joints in radians, gripper |
| dict type="joint_rel", action=8 numbers | increments in radians on the measured joints, gripper |

The gripper of a plain array closes for values <= 0 and opens above, since a policy's output is any number; in every
other form it must be exactly +1 (open) or -1 (close). Nothing is clipped; the arguments are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vw2_robot.contracts import ACTION_DIM, POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError

Kind = Literal["cartesian_rel", "cartesian_abs", "joint_rel", "joint_abs"]
_LENGTHS: dict[str, tuple[int, ...]] = {
    "cartesian_rel": (7,),
    "cartesian_abs": (7, 8),
    "joint_rel": (8,),
    "joint_abs": (8,),
}
_EXPECTED: dict[str, str] = {
    "cartesian_rel": ' (a batch? step takes one action; other forms: {"type": "joint_abs", "action": ...} and so on)',
    "cartesian_abs": " (3 position, 3 Euler angles or 4 quaternion, 1 gripper)",
    "joint_rel": " (7 arm joints, 1 gripper)",
    "joint_abs": " (7 arm joints, 1 gripper)",
}


@dataclass(frozen=True)
class Command:
    """One checked action: `values` is everything but the gripper, `gripper` is +1 (open) or -1 (close)."""

    kind: Kind
    values: NDArray[np.float64]
    gripper: int


def parse_action(action: Any) -> Command:
    """Return the `Command` of an action in any accepted form.

    Raises:
        InputError: names what does not fit.
    """
    if isinstance(action, Mapping):
        if set(action) != {"type", "action"}:
            raise InputError(f'an action dict has the keys "type" and "action", received {sorted(map(str, action))}')
        kind = action["type"]
        values = action["action"]
        if kind not in tuple(_LENGTHS):  # a tuple, because an unhashable kind must give this message, too
            raise InputError(f"unknown action type {kind!r}; known: {', '.join(_LENGTHS)}")
        if kind == "cartesian_abs" and isinstance(values, tuple) and len(values) == 3:
            values = _flatten(values)
        return _command(kind, values, gripper_by_sign=False)
    if isinstance(action, tuple) and len(action) == 3:
        return _command("cartesian_abs", _flatten(action), gripper_by_sign=False)
    return _command("cartesian_rel", action, gripper_by_sign=True)


def to_relative_action(absolute: ArrayLike, robot_obs: ArrayLike) -> NDArray[np.float64]:
    """Return the relative action [7] that leads from the measured pose to an absolute one.

    Differences are clipped to one action unit, so a far target needs several actions.

    Args:
        absolute: [7], position in meters, Euler angles in radians, gripper.
        robot_obs: [15], of which position and Euler angles are used.

    Raises:
        InputError: arrays of other shapes.
    """
    target = np.asarray(absolute, np.float64)
    measured = np.asarray(robot_obs, np.float64)
    if target.shape != (ACTION_DIM,) or measured.ndim != 1 or measured.size < 6:
        raise InputError(
            f"to_relative_action expects 7 and 15 numbers, received shapes {target.shape}, {measured.shape}"
        )
    relative = target.copy()
    relative[:3] = np.clip(target[:3] - measured[:3], -POSITION_UNIT_M, POSITION_UNIT_M) / POSITION_UNIT_M
    # The shorter way around.
    rotation = (target[3:6] - measured[3:6] + np.pi) % (2 * np.pi) - np.pi
    relative[3:6] = np.clip(rotation, -ROTATION_UNIT_RAD, ROTATION_UNIT_RAD) / ROTATION_UNIT_RAD
    return relative


def _flatten(parts: tuple[Any, ...]) -> NDArray[np.float64]:
    """Return (position, orientation, gripper) as one row of numbers."""
    arrays = [_numbers(part, "absolute action").ravel() for part in parts]
    if [array.size for array in arrays] not in ([3, 3, 1], [3, 4, 1]):
        raise InputError(
            "an absolute action is (3 position, 3 Euler angles or 4 quaternion, 1 gripper) numbers, "
            f"received {tuple(array.size for array in arrays)}"
        )
    return np.concatenate(arrays)


def _command(kind: Kind, action: Any, *, gripper_by_sign: bool) -> Command:
    """Return a checked command; `gripper_by_sign` accepts any number for the gripper."""
    values = _numbers(action, f"{kind} action")
    if values.ndim != 1 or values.size not in _LENGTHS[kind]:
        lengths = " or ".join(str(length) for length in _LENGTHS[kind])
        raise InputError(
            f"{kind} action: expected {lengths} numbers in one row, received shape {values.shape}{_EXPECTED[kind]}"
        )
    gripper = values[-1]
    if gripper_by_sign:
        gripper = 1 if gripper > 0 else -1
    elif gripper not in (1, -1):
        raise InputError(
            f"{kind} action: the gripper (last number) must be 1 (open) or -1 (close), received {gripper:g}; "
            "round it to one of them, or pass a plain relative array, whose gripper goes by its sign"
        )
    return Command(kind=kind, values=values[:-1].copy(), gripper=int(gripper))


def _numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Return finite numbers as an array; `name` is for the message."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers, received {values!r}") from error
    if not np.isfinite(array).all():
        raise InputError(
            f"{name}: expected finite numbers, received {array.tolist()}; look for a division by zero or a missing "
            "normalization where it was computed. Nothing has moved"
        )
    return array
