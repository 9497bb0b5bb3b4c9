"""The error of predicted actions on held-out windows, with an interval, and how much of it predicted codes cause.

In control the policy acts on the codes that it predicts itself, so the error with those is the one that counts. The
same windows with the dLDM's codes show how much of it comes from predicting codes. Windows of one trajectory are alike,
so the interval is a bootstrap over whole trajectories.
"""

# n windows · R = s·H actions of a window · A action dims
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.distributed.batch_share import shared_chunks
from vw2_robot.distributed.ranks import global_sum
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy

from .config import FinetuneConfig
from .labeled_windows import LabeledWindows
from .losses import action_errors, input_codes

BATCH = 256
RESAMPLES = 1000


@dataclass(frozen=True)
class Validation:
    """Means over the actions of some windows that are no padding, in normalized units.

    Attributes:
        action_loss: the action loss of training, with predicted codes.
        low: lower end of its 95 % interval.
        high: upper end.
        ground_truth_codes_loss: the action loss with the dLDM's codes; None where there are none.
        arm_error: mean absolute error of the six numbers that move the arm.
        gripper_accuracy: share of gripper actions with the right sign.
        windows: how many were validated on.
        trajectories: how many they are from.
    """

    action_loss: float
    low: float
    high: float
    ground_truth_codes_loss: float | None
    arm_error: float
    gripper_accuracy: float
    windows: int
    trajectories: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the metrics by name; the gap is the loss that predicted codes add over the dLDM's codes."""
        found = {
            f"{prefix}_action_l2": self.action_loss,
            f"{prefix}_action_l2_low": self.low,
            f"{prefix}_action_l2_high": self.high,
            f"{prefix}_arm_error": self.arm_error,
            f"{prefix}_gripper_accuracy": self.gripper_accuracy,
        }
        if self.ground_truth_codes_loss is not None:
            found |= {
                f"{prefix}_ground_truth_codes_l2": self.ground_truth_codes_loss,
                f"{prefix}_code_gap": self.action_loss - self.ground_truth_codes_loss,
            }
        return found


@torch.no_grad()
def validate(
    config: FinetuneConfig,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabeledWindows,
    max_windows: int | None = None,
) -> Validation:
    """Predict the actions of all windows, or of `max_windows` of them, evenly spread; ranks share them.

    Args:
        config: losses and code source.
        policy: on the device.
        head: on the device.
        windows: labeled and held out.
        max_windows: None takes all.
    """
    device = next(policy.parameters()).device
    count = len(windows) if max_windows is None else min(max_windows, len(windows))
    # Not the first ones: windows are in the order of their trajectories, and neighbors are nearly copies.
    check = np.linspace(0, len(windows) - 1, count).astype(np.int64)
    has_codes = windows.has_codes and config.code_source != "none"
    span = windows.actions.shape[1:]
    predicted = torch.zeros(count, *span)
    with_ground_truth = torch.zeros(count, *span)
    # Without image shift: what the policy sees in control is not shifted either.
    for places, counts in shared_chunks(count, BATCH):
        rows = check[places]
        image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
        for found, is_predicted in ((predicted, True), (with_ground_truth, False)):
            if is_predicted or has_codes:
                with config.hardware.autocast(device):
                    inputs = input_codes(config, policy, windows, rows, image, torch.full((len(rows),), is_predicted))
                    prompt = policy.prompt(windows.instructions(rows), image)
                    found[places] += counts * head(policy.states(prompt, inputs)).float().cpu()
    # Each window was predicted by one rank; the others have zeros for it.
    predicted = global_sum(predicted)
    with_ground_truth = global_sum(with_ground_truth)
    mask = windows.action_mask[check]
    actions = windows.actions[check]
    errors = masked_errors(config, predicted, windows, check)
    ground_truth_codes_loss = None
    if has_codes:
        others = masked_errors(config, with_ground_truth, windows, check)
        ground_truth_codes_loss = float(others.sum() / mask.sum())
    low, high = bootstrap_interval(errors.sum(1), mask.sum(1), windows.episode[check])
    # [n, R, A] -> [actions that are no padding, A].
    absolute = np.abs(predicted.numpy() - actions)[mask]
    arm = np.delete(absolute, GRIPPER_INDEX, axis=1)
    # The sign decides whether the gripper opens or closes; with `bce` it is that of the logit.
    right = (predicted.numpy() > 0)[mask][:, GRIPPER_INDEX] == (actions > 0)[mask][:, GRIPPER_INDEX]
    return Validation(
        action_loss=float(errors.sum() / mask.sum()),
        low=low,
        high=high,
        ground_truth_codes_loss=ground_truth_codes_loss,
        arm_error=float(arm.mean()),
        gripper_accuracy=float(right.mean()),
        windows=count,
        trajectories=len(np.unique(windows.episode[check])),
    )


def masked_errors(
    config: FinetuneConfig, predicted: Tensor, windows: LabeledWindows, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return [n, R]: the loss of each action, 0 for padding.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [n, R, A] of the head, on the CPU, in normalized units; with `bce` the gripper's is a logit.
        windows: labeled; their actions and action masks are compared with.
        rows: [n], positions of the windows that were predicted.
    """
    errors = action_errors(config, predicted, torch.from_numpy(windows.actions[rows]))
    # float64 for the sums over all windows.
    return errors.double().numpy() * windows.action_mask[rows]


def bootstrap_interval(
    sums: NDArray[np.float64], counts: NDArray[np.int64], groups: NDArray[np.int64], *, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of sum(sums) / sum(counts) when whole groups are sampled with replacement.

    The samples are fixed, so equal input gives an equal interval. With one group, low and high are the mean.

    Args:
        sums: [n], such as the summed errors of a window.
        counts: [n], of what was summed.
        groups: [n], which group each belongs to.
        level: share of the samples inside the interval.
    """
    # Sums of each group: a sample of groups is then a sum over a few numbers.
    _, group = np.unique(groups, return_inverse=True)
    total = np.bincount(group, sums)
    weight = np.bincount(group, counts)
    samples = np.random.default_rng(0).integers(0, len(total), (RESAMPLES, len(total)))
    # A ratio of sums, not a mean of ratios: trajectories count by their actions, as in the loss itself.
    means = total[samples].sum(1) / weight[samples].sum(1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
