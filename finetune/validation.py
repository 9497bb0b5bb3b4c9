"""The error of predicted actions on held-out windows, with an interval, and how well codes are predicted there.

The policy acts as in control (`acting`), so the error and the code loss are those that count there. The same windows
with the dLDM's codes in the slots show how much of both comes from what the policy reads. Windows of one trajectory are
alike, so the interval is a bootstrap over whole trajectories. Errors rank acting modes wrongly: select by rollouts.
"""

# n windows · R = s·H actions of a window · A action dims
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.distributed.batch_share import shared_chunks
from vw2_robot.distributed.ranks import global_sum
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.random_numbers import SampleNoise

from .config import CodeSource, FinetuneConfig
from .labeled_windows import LabeledWindows
from .losses import action_errors, input_codes

STREAM_CODES = 57
BATCH = 256
RESAMPLES = 1000


@dataclass(frozen=True)
class Validation:
    """Means over the actions of some windows that are no padding, in normalized units.

    Attributes:
        action_loss: the action loss of training, acting as in control.
        low: lower end of its 95 % interval.
        high: upper end.
        ground_truth_codes_loss: the action loss where the dLDM's codes are read; None for a policy that reads none.
        code_loss: the code loss, acting as in control; None without codes to compare with, as the three below.
        code_accuracy: share of codes of valid steps that are the likeliest, acting as in control.
        ground_truth_codes_code_loss: the code loss where the dLDM's codes are read before; also None as above.
        ground_truth_codes_accuracy: the same for the accuracy.
        arm_error: mean absolute error of all numbers but the gripper's.
        gripper_accuracy: share of gripper actions with the right sign; None for a robot without a gripper that has
            two commands.
        windows: how many were validated on.
        trajectories: how many they are from.
    """

    action_loss: float
    low: float
    high: float
    ground_truth_codes_loss: float | None
    code_loss: float | None
    code_accuracy: float | None
    ground_truth_codes_code_loss: float | None
    ground_truth_codes_accuracy: float | None
    arm_error: float
    gripper_accuracy: float | None
    windows: int
    trajectories: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the metrics by name; the gap is the action loss that is added over reading the dLDM's codes."""
        found = {
            f"{prefix}_action_l2": self.action_loss,
            f"{prefix}_action_l2_low": self.low,
            f"{prefix}_action_l2_high": self.high,
            f"{prefix}_arm_error": self.arm_error,
        }
        optional = {
            f"{prefix}_gripper_accuracy": self.gripper_accuracy,
            f"{prefix}_code_loss": self.code_loss,
            f"{prefix}_accuracy": self.code_accuracy,
            f"{prefix}_ground_truth_codes_code_loss": self.ground_truth_codes_code_loss,
            f"{prefix}_ground_truth_codes_accuracy": self.ground_truth_codes_accuracy,
        }
        found |= {name: value for name, value in optional.items() if value is not None}
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
        config: losses and acting mode.
        policy: on the device.
        head: on the device.
        windows: labeled and held out.
        max_windows: None takes all.
    """
    device = next(policy.parameters()).device
    count = len(windows) if max_windows is None else min(max_windows, len(windows))
    # Not the first ones: windows are in the order of their trajectories, and neighbors are nearly copies.
    check = np.linspace(0, len(windows) - 1, count).astype(np.int64)
    # As in control first, then with the dLDM's codes, where the policy reads any.
    sources: list[CodeSource] = ["predicted"]
    if windows.has_codes and config.reads_codes:
        sources.append("ground_truth")
    predicted = torch.zeros(len(sources), count, *windows.actions.shape[1:])
    code_sums = torch.zeros(len(sources), 2, dtype=torch.float64)
    one = torch.ones((), device=device)
    # Without image shift: what the policy sees in control is not shifted either.
    for places, counts in shared_chunks(count, BATCH):
        rows = check[places]
        image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
        # The same samples of codes every time, for acting=sampled.
        noise = SampleNoise(config.seed, 0, stream=STREAM_CODES, samples=rows.tolist(), device=device)
        with config.hardware.autocast(device):
            prompt = policy.prompt(windows.instructions(rows), image)
            for number, source in enumerate(sources):
                inputs = input_codes(
                    config, policy, windows, rows, image, source=source, hindsight_share=0.0, noise=noise
                )
                states = policy.states(prompt, inputs, last_code=config.head.last_code)
                predicted[number, places] += counts * head(states).float().cpu()
                if windows.has_codes:
                    codes, valid = (torch.from_numpy(of[rows]).to(device) for of in (windows.codes, windows.valid))
                    predicting = states[:, :, : policy.config.queries]
                    loss, more = policy.code_loss(predicting, codes, valid & counts, count=one)
                    code_sums[number] += torch.stack([loss, more["accuracy"]]).cpu().double()
    # Each window was predicted by one rank; the others have zeros for it.
    predicted = global_sum(predicted)
    mask = windows.action_mask[check]
    actions = windows.actions[check]
    errors, *others = (masked_errors(config, part, windows, check) for part in predicted)
    code_means: list[list[float | None]] = [[None, None], [None, None]]
    if windows.has_codes:
        valid_codes = int(windows.valid[check].sum()) * policy.config.queries
        code_means[: len(sources)] = (global_sum(code_sums) / max(valid_codes, 1)).tolist()
    low, high = bootstrap_interval(errors.sum(1), mask.sum(1), windows.episode[check])
    # [n, R, A] -> [actions that are no padding, A].
    absolute = np.abs(predicted[0].numpy() - actions)[mask]
    arm = absolute
    gripper_accuracy = None
    if (gripper := windows.statistics.gripper_index) is not None:
        arm = np.delete(absolute, gripper, axis=1)
        # The sign decides whether the gripper opens or closes; with `bce` it is that of the logit.
        right = (predicted[0].numpy() > 0)[mask][:, gripper] == (actions > 0)[mask][:, gripper]
        gripper_accuracy = float(right.mean())
    return Validation(
        action_loss=float(errors.sum() / mask.sum()),
        low=low,
        high=high,
        ground_truth_codes_loss=float(others[0].sum() / mask.sum()) if others else None,
        code_loss=code_means[0][0],
        code_accuracy=code_means[0][1],
        ground_truth_codes_code_loss=code_means[1][0],
        ground_truth_codes_accuracy=code_means[1][1],
        arm_error=float(arm.mean()),
        gripper_accuracy=gripper_accuracy,
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
    actions = torch.from_numpy(windows.actions[rows])
    errors = action_errors(config, predicted, actions, gripper_index=windows.statistics.gripper_index)
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
