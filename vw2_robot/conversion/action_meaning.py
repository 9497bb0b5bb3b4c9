"""The meaning of the numbers of an action: what a data set states about them, and the conversion to CALVIN's units.

Numbers are copied, never scaled, with one exception: a data set in meters and radians that becomes CALVIN's
`rel_actions`, which are in units of 0.02 m and 0.05 rad. They are divided once, and the numbers themselves are kept
beside them, so that the way back is exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES, GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError

Units = Literal["calvin", "metric", "unknown"]
_UNITS: dict[Units, tuple[float, float]] = {"calvin": (POSITION_UNIT_M, ROTATION_UNIT_RAD), "metric": (1.0, 1.0)}


@dataclass(frozen=True)
class ActionMeaning:
    """The meaning of an action: its units, and the last number of a closed and of an open gripper.

    `calvin` and `metric` are both the change of the end effector in one step, along the axes of the world, in the order
    of `contracts.ACTION_NAMES`.
    """

    units: Units
    closed: float = -1.0
    open: float = 1.0

    @staticmethod
    def of(facts: dict[str, Any]) -> ActionMeaning:
        """Return the meaning that `facts` described."""
        return ActionMeaning(**{key: facts[key] for key in ("units", "closed", "open")})

    def facts(self) -> dict[str, Any]:
        """Return the description that is stored beside a data set, as JSON values."""
        if self.units == "unknown":
            return {
                **asdict(self),
                "text": "the meaning of the action is not stated; its numbers are those of the source",
            }
        meters, radians = _UNITS[self.units]
        return {
            **asdict(self),
            "names": list(ACTION_NAMES),
            "kind": "relative: the change of the end effector in one step, not an absolute pose",
            "frame": "axes of the world, in which the robot's base does not turn",
            "rotation": "fixed-axis x-y-z Euler angles",
            "meters_per_unit": meters,
            "radians_per_unit": radians,
            "to_meters_and_radians": [meters] * 3 + [radians] * 3 + [1.0],
            "text": self.text(),
        }

    def text(self) -> str:
        """Return the meaning as one sentence."""
        meters, radians = _UNITS[self.units]
        scaled = (
            f"numbers 0-2 times {meters:g} are meters, numbers 3-5 times {radians:g} are radians; they are scaled once "
            "already, so do not divide by these units again"
            if self.units == "calvin"
            else "numbers 0-2 are meters, numbers 3-5 are radians"
        )
        return (
            "action: change of the end effector in one step (relative, along the axes of the world, rotation as "
            f"fixed-axis x-y-z Euler angles): {', '.join(ACTION_NAMES)}; {scaled}; gripper {self.closed:g} closes and "
            f"{self.open:g} opens"
        )

    def to_calvin(self, actions: NDArray[np.floating[Any]], where: str) -> NDArray[np.float64]:
        """Return the actions as CALVIN's `rel_actions` [T, 7]: units of 0.02 m and 0.05 rad, gripper -1 or +1.

        Nothing is clipped, so that slow robots with long steps exceed CALVIN's range of -1 to 1.

        Args:
            actions: [T, 7] in the units of this meaning.
            where: data set and episode, for the message.

        Raises:
            InputError: the meaning is unknown, or they are not seven numbers.
        """
        if self.units == "unknown" or actions.shape[1] != ACTION_DIM:
            raise InputError(
                f"{where}: its action has {actions.shape[1]} numbers of {self.units} units, CALVIN's rel_actions are "
                f"{ACTION_DIM} numbers. If they are {', '.join(ACTION_NAMES)}, add actions=calvin or actions=metric; "
                "actions=drop writes images and instructions alone"
            )
        if self.units == "calvin":
            return actions.astype(np.float64)
        scale = np.array([1 / POSITION_UNIT_M] * 3 + [1 / ROTATION_UNIT_RAD] * 3 + [1.0])
        scaled = actions.astype(np.float64) * scale
        gripper = actions[:, GRIPPER_INDEX].astype(np.float64)
        scaled[:, GRIPPER_INDEX] = np.where(abs(gripper - self.open) < abs(gripper - self.closed), 1.0, -1.0)
        return scaled


CALVIN = ActionMeaning("calvin")
UNKNOWN = ActionMeaning("unknown")
