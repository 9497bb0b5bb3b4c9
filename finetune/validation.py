"""How well held-out actions are predicted, with an interval, and what the policy's own codes cost.

The simulator sees the policy act on its own codes, so that is what counts; the same windows with the dLDM's codes say
how much of the error comes from predicting codes (method specification 3.4: "log the gap"). Windows of one trajectory
are alike, so the interval is a bootstrap over whole trajectories.
"""

# n windows · s*H actions of a window · A action dims
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy

from .config import FinetuneConfig
from .labeled_windows import LabeledWindows
from .losses import action_errors, fed_codes

BATCH = 256
RESAMPLES = 1000


@dataclass(frozen=True)
class Validation:
    """Means over the real actions of some windows, in normalized units.

    action_loss: as trained, own codes; low, high: its 95 % interval. code_loss: with the dLDM's codes, None where
    there are none. arm_error: mean absolute error of the six arm numbers. gripper_accuracy: share of right signs.
    """

    action_loss: float
    low: float
    high: float
    code_loss: float | None
    arm_error: float
    gripper_accuracy: float
    windows: int
    trajectories: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """For metrics.jsonl. The gap is what own codes cost over the teacher's."""
        found = {
            f"{prefix}_action_l2": self.action_loss,
            f"{prefix}_action_l2_low": self.low,
            f"{prefix}_action_l2_high": self.high,
            f"{prefix}_arm_error": self.arm_error,
            f"{prefix}_gripper_accuracy": self.gripper_accuracy,
        }
        if self.code_loss is not None:
            found |= {
                f"{prefix}_teacher_l2": self.code_loss,
                f"{prefix}_teacher_gap": self.action_loss - self.code_loss,
            }
        return found


@torch.no_grad()
def validate(
    config: FinetuneConfig,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabeledWindows,
    *,
    device: torch.device,
    most: int | None = None,
) -> Validation:
    """Look at all windows, or at `most` of them, evenly spread."""
    count = len(windows) if most is None else min(most, len(windows))
    check = np.linspace(0, len(windows) - 1, count).astype(np.int64)
    has_code_labels = windows.taught and config.code_source != "none"
    own: list[Tensor] = []
    teacher: list[Tensor] = []
    for i in range(0, count, BATCH):
        rows = check[i : i + BATCH]
        prompt = policy.prompt(
            windows.words(rows), windows.images(rows, image_px=policy.config.image_px, device=device)
        )
        for found, is_own in ((own, True), (teacher, False)):
            if is_own or has_code_labels:
                fed = fed_codes(config, policy, windows, rows, prompt, torch.full((len(rows),), is_own))
                found.append(head(policy.states(prompt, fed)).float().cpu())
    predicted = torch.cat(own)
    errors = _errors(config, predicted, windows, check)
    real, actions = windows.real[check], windows.actions[check]
    low, high = bootstrap_interval(errors.sum(1), real.sum(1), windows.episode[check])
    wrong = np.abs(predicted.numpy() - actions)[real]
    arm = np.delete(wrong, GRIPPER_INDEX, axis=1)
    right = (predicted.numpy() > 0)[real][:, GRIPPER_INDEX] == (actions > 0)[real][:, GRIPPER_INDEX]
    return Validation(
        action_loss=float(errors.sum() / real.sum()),
        low=low,
        high=high,
        code_loss=float(_errors(config, torch.cat(teacher), windows, check).sum() / real.sum()) if teacher else None,
        arm_error=float(arm.mean()),
        gripper_accuracy=float(right.mean()),
        windows=count,
        trajectories=len(np.unique(windows.episode[check])),
    )


def _errors(
    config: FinetuneConfig, predicted: Tensor, windows: LabeledWindows, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[n, sH]: the loss of each real action, 0 elsewhere."""
    errors = action_errors(config, predicted, torch.from_numpy(windows.actions[rows]))
    return errors.double().numpy() * windows.real[rows]


def bootstrap_interval(
    sums: NDArray[np.float64], counts: NDArray[np.int64], groups: NDArray[np.int64], *, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts) when whole groups are drawn with replacement.

    `sums` [n] and `counts` [n] belong to the groups `groups` [n]. The draws are fixed, so equal input gives an equal
    interval. With one group there is nothing to draw from: low and high are the mean.
    """
    _, group = np.unique(groups, return_inverse=True)
    total, weight = np.bincount(group, sums), np.bincount(group, counts)
    drawn = np.random.default_rng(0).integers(0, len(total), (RESAMPLES, len(total)))
    means = total[drawn].sum(1) / weight[drawn].sum(1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
