"""Action statistics, action normalization and its exact inverse.

Statistics are computed once from the selected labels only and stored with the data and in every checkpoint. By default
dimension d is mapped so that its 1 % and 99 % quantiles become -1 and +1, and clipped there; so normalize followed by
unnormalize is the identity between the quantiles and saturates outside. The gripper is never scaled: it is -1 (close)
or +1 (open) on both sides. A dimension that is nearly constant (spread below 1e-6) is not scaled either.

CALVIN's `rel_actions` are already scaled (units of 0.02 m and 0.05 rad); they are not scaled again here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import CALVIN_ACTIONS, GRIPPER_INDEX, ActionSpace
from vw2_robot.errors import InputError

# N actions · A action dims
NormalizationMode = Literal["q01_q99", "mean_std", "none"]
MIN_SPREAD = 1e-6
RANGE_SLACK = 1e-4
"""Recorded actions are float32 and may exceed 1 by rounding."""
_VECTORS = ("q01", "q99", "mean", "std", "min", "max")


@dataclass(frozen=True, eq=False)
class ActionStatistics:
    """Statistics [A] of the dimensions of `count` actions, and the kind of normalization (`mode`)."""

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    count: int
    mode: NormalizationMode = "q01_q99"
    gripper_index: int | None = GRIPPER_INDEX

    def __post_init__(self) -> None:
        if self.mode not in get_args(NormalizationMode):
            raise InputError(f"action normalization must be one of {get_args(NormalizationMode)}, found {self.mode!r}")
        shapes = {name: getattr(self, name).shape for name in _VECTORS}
        if len(set(shapes.values())) != 1 or len(shapes["mean"]) != 1:
            raise InputError(f"action statistics must be vectors of one length, found {shapes}")
        if self.gripper_index is not None and not 0 <= self.gripper_index < self.mean.size:
            raise InputError(f"gripper index {self.gripper_index} lies outside an action of {self.mean.size} numbers")
        if not all(np.isfinite(getattr(self, name)).all() for name in _VECTORS):
            raise InputError("action statistics hold a number that is not finite")

    @classmethod
    def from_actions(
        cls,
        actions: NDArray[np.floating[Any]],
        *,
        mode: NormalizationMode = "q01_q99",
        gripper_index: int | None = GRIPPER_INDEX,
    ) -> ActionStatistics:
        """Compute the statistics of actions [N, A].

        Args:
            actions: N actions of A dimensions [N, A], in robot units.
            mode: kind of normalization that the statistics are for: "q01_q99", "mean_std" or "none".
            gripper_index: dimension of the gripper, -1 (close) or +1 (open) in every action; None if there is none.

        Raises:
            InputError: there is no action, a number is not finite, or a gripper value is neither -1 nor +1.
        """
        if actions.ndim != 2 or 0 in actions.shape:
            raise InputError(f"action statistics need actions [N, A] with N >= 1, found shape {actions.shape}")
        # float64: sums over many float32 actions would lose digits.
        values = actions.astype(np.float64)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise InputError(f"action {row} of {len(values)} is not finite: {values[row].tolist()}")
        if gripper_index is not None and not np.isin(values[:, gripper_index], (-1.0, 1.0)).all():
            found = np.unique(values[:, gripper_index])[:4].tolist()
            raise InputError(f"gripper actions must be -1 (close) or +1 (open), found {found}")
        # Quantiles instead of extremes: single outliers would compress the range of all others.
        q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
        return cls(
            q01=q01,
            q99=q99,
            mean=values.mean(axis=0),
            std=values.std(axis=0),
            min=values.min(axis=0),
            max=values.max(axis=0),
            count=len(values),
            mode=mode,
            gripper_index=gripper_index,
        )

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Bool [A], true for the dimensions that are scaled; the gripper and constant dimensions are not."""
        spread = {"q01_q99": self.q99 - self.q01, "mean_std": self.std, "none": np.zeros_like(self.std)}[self.mode]
        mask: NDArray[np.bool_] = spread >= MIN_SPREAD
        if self.gripper_index is not None:
            mask[self.gripper_index] = False
        return mask

    def normalize(self, actions: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return actions [..., A] in the units of a model: [-1, 1] where `mask` is true, in mode q01_q99."""
        values = self._checked(actions)
        offset, scale = self._offset_and_scale()
        scaled = (values - offset) / scale
        if self.mode == "q01_q99":
            # Dimensions that are not scaled pass through unclipped (method specification, section 3.3).
            scaled = np.where(self.mask, np.clip(scaled, -1.0, 1.0), scaled)
        return scaled.astype(np.float32)

    def unnormalize(self, actions: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return predictions [..., A] in robot units; the gripper becomes -1 or +1 by its sign (0 closes)."""
        values = self._checked(actions)
        offset, scale = self._offset_and_scale()
        restored = values * scale + offset
        # The gripper is never scaled, so the sign is taken from the prediction itself.
        if self.gripper_index is not None:
            restored[..., self.gripper_index] = np.where(values[..., self.gripper_index] > 0, 1.0, -1.0)
        return restored.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return numbers and lists for JSON, exact to the last bit; `from_json` is the inverse."""
        # `mask` is for other programs: it is computed again when the statistics are read.
        vectors = {name: getattr(self, name).tolist() for name in _VECTORS}
        rest = {"count": self.count, "mode": self.mode, "gripper_index": self.gripper_index}
        return {**vectors, **rest, "mask": self.mask.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ActionStatistics:
        """Return the statistics that `to_json` described.

        Raises:
            InputError: a key is missing or a value has the wrong type.
        """
        missing = [field.name for field in fields(cls) if field.name not in content]
        if missing:
            raise InputError(f"action statistics lack {missing}; they hold {sorted(content)}")
        try:
            vectors = {name: np.asarray(content[name], dtype=np.float64) for name in _VECTORS}
            gripper = content["gripper_index"]
            return cls(
                **vectors,
                count=int(content["count"]),
                mode=content["mode"],
                gripper_index=None if gripper is None else int(gripper),
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"action statistics cannot be read: {error}") from error

    def _offset_and_scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return center and scale [A] of each dimension; 0 and 1 where it is not scaled."""
        center = (self.q01 + self.q99) / 2
        half = (self.q99 - self.q01) / 2
        if self.mode == "mean_std":
            center = self.mean
            half = self.std
        return np.where(self.mask, center, 0.0), np.where(self.mask, half, 1.0)

    def _checked(self, actions: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the actions in float64, after a check of their shape."""
        if actions.ndim < 1 or actions.shape[-1] != self.mean.size:
            raise InputError(f"actions have shape {actions.shape}, the statistics are of {self.mean.size} numbers")
        # float64, so that the inverse is exact to float32 for any offset.
        return actions.astype(np.float64)


def check_range(actions: NDArray[np.floating[Any]], space: ActionSpace, where: str) -> None:
    """Check that actions [N, A] lie in [-1, 1].

    Args:
        actions: as stored in a data set.
        space: of its robot, for the message.
        where: data set and trajectory, for the message.

    Raises:
        InputError: a number is larger; the message names `where`, the number and the time step.
    """
    wrong = np.argwhere(np.abs(actions) > 1 + RANGE_SLACK)
    if len(wrong):
        row, i = wrong[0].tolist()
        raise InputError(
            f"{where}: {space.names[i]} is {actions[row, i]:.4g} at its time step {row}; {out_of_range(space)}"
        )


def out_of_range(space: ActionSpace) -> str:
    """Return what to do about actions beyond [-1, 1], the end of a message."""
    if space == CALVIN_ACTIONS:
        return (
            "relative actions lie in [-1, 1]. These are in other units, or absolute poses: write rel_actions as CALVIN "
            "scales them (0.02 m, 0.05 rad)"
        )
    return f"actions lie in [-1, 1]: scale them, and state the unit in robot.json (now: {space.units})"


def mean_and_std(actions: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation [A] of the actions [L, A] of all episodes, without the last one of each.

    In RLDS the action after the last observation has no meaning. The deviation is that of a sample (n - 1), as in rlds.

    Raises:
        InputError: fewer than two actions.
    """
    values = np.concatenate([episode[:-1] for episode in actions])
    if len(values) < 2:
        raise InputError(f"statistics need two actions, found {len(values)} in {len(actions)} episodes")
    return values.mean(axis=0), values.std(axis=0, ddof=1)
