"""What fine-tuning minimizes: the action loss on labeled windows, the code loss on labeled and unlabeled ones.

    L = mean over valid actions [ ||a_arm - â_arm||² + w_g L_g ] + lambda_ce · CE(codes)

in normalized units, with L_g the squared error against -1 and +1, or the binary cross-entropy of the gripper's logit.
With `aids.pose_weight` the head also predicts the pose of the end effector: one camera far away hides depth from a
policy that learns actions alone, and then it reaches for a place on the same line of sight (docs/lab_log.md).
"""

# B batch · H latent steps · N codes per step · s actions per step · A action dims · R = s·H
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.distributed.ranks import any_rank, global_sum, world_size
from vw2_robot.distributed.sharding import LossParts, gathered
from vw2_robot.models.policy.acting import null_codes
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.precision import at_least_float32
from vw2_robot.pixels import shift_randomly
from vw2_robot.random_numbers import SampleNoise

from .config import FinetuneConfig
from .labeled_windows import LabeledWindows, VideoWindows


class WindowBatch(NamedTuple):
    """Some labeled windows, with the codes that the policy is given."""

    rows: NDArray[np.int64]
    image: Tensor
    """[B, 3, px, px] in [-1, 1], shifted"""
    inputs: Tensor
    """codes [B, H, N]"""
    counted: Tensor | None
    """bool [B, H, N], codes that the code loss counts; None without such a loss"""


class Totals(NamedTuple):
    """What the losses of a part of a batch are divided by: numbers of the whole batch, over all ranks."""

    windows: int
    actions: Tensor
    """that are no padding"""
    codes: Tensor
    """that the code loss counts"""


def action_errors(config: FinetuneConfig, predicted: Tensor, actions: Tensor) -> Tensor:
    """Return [B, R]: the loss of each action.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A] in normalized units.
    """
    # float32 on purpose: under autocast the head gives bfloat16, too coarse for small errors.
    predicted = at_least_float32(predicted)
    weight = torch.ones(actions.shape[-1], device=actions.device)
    # With `bce` the gripper's term is the cross-entropy below, not the squared error.
    weight[GRIPPER_INDEX] = config.gripper_weight if config.gripper_loss == "l2" else 0.0
    # Summed over dimensions, not averaged: the equation of the paper.
    errors = ((predicted - actions).square() * weight).sum(-1)
    if config.gripper_loss == "bce":
        is_open = (actions[..., GRIPPER_INDEX] + 1) / 2  # -1, +1 -> 0, 1
        logit = predicted[..., GRIPPER_INDEX]
        errors = errors + config.gripper_weight * F.binary_cross_entropy_with_logits(logit, is_open, reduction="none")
    return errors


def action_loss(
    config: FinetuneConfig, predicted: Tensor, actions: Tensor, action_mask: Tensor, *, count: Tensor | None = None
) -> Tensor:
    """Return the mean of `action_errors` over the actions [B, R] that are no padding.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A], the actions of the data set in normalized units.
        action_mask: [B, R], true or 1 where the action is no padding.
        count: what the sum is divided by: that of the whole batch where this is a part of it; None: that of this mask.

    Returns:
        A scalar; 0 if all actions are padding.
    """
    total = action_mask.sum() if count is None else count
    return (action_errors(config, predicted, actions) * action_mask).sum() / total.clamp(min=1)


@torch.no_grad()
def window_batch(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: LabeledWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    predicted_share: float,
    noise: SampleNoise,
) -> WindowBatch:
    """Read some labeled windows and choose the codes that the policy is given.

    Args:
        config: code source and image shift.
        policy: on the device; predicts codes.
        windows: all training windows.
        rows: the ones of this batch.
        device: where the batch goes.
        predicted_share: chance of each window to be given the policy's own predicted codes instead of ground-truth
            ones.
        noise: of the image shift, then of that choice.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    is_predicted = noise.rand() < predicted_share
    inputs = input_codes(config, policy, windows, rows, image, is_predicted)
    # From scratch there is no dLDM and so nothing to compare codes with, also for `code_source=predicted`.
    if not windows.has_codes or config.code_source == "none":
        return WindowBatch(rows, image, inputs, None)
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    # Only where the codes before are right is the code loss that of pre-training.
    return WindowBatch(rows, image, inputs, valid[..., None] & prefix_is_right(inputs, codes))


def totals_of(windows: LabeledWindows, rows: NDArray[np.int64], batches: Sequence[WindowBatch]) -> Totals:
    """Return the numbers of a whole batch; all ranks must call it.

    Args:
        windows: all training windows.
        rows: of the whole batch, which every rank knows.
        batches: the parts of this rank.
    """
    device = batches[0].image.device
    counts = [batch.counted.sum() for batch in batches if batch.counted is not None]
    codes = torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long, device=device)
    actions = torch.tensor(int(windows.action_mask[rows].sum()), device=device)
    return Totals(len(rows), actions, global_sum(codes))


def window_losses(
    config: FinetuneConfig,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabeledWindows,
    batch: WindowBatch,
    totals: Totals,
) -> LossParts:
    """Return the losses on some labeled windows; those of all parts of a batch add up to that of the batch.

    Args:
        config: weights and switches.
        policy: on the device.
        head: on the device.
        windows: all training windows.
        batch: the ones of this part.
        totals: of the whole batch.

    Returns:
        The total, which is minimized, and its parts for the log: action, pose, code, accuracy.
    """
    rows = batch.rows
    device = batch.image.device
    prompt = policy.prompt(windows.instructions(rows), batch.image)
    # A pass over given codes, also where they were just predicted: `decode` makes its states without gradient.
    states = policy.states(prompt, batch.inputs)
    actions = torch.from_numpy(windows.actions[rows]).to(device)
    action_mask = torch.from_numpy(windows.action_mask[rows]).to(device)
    action = action_loss(config, head(states), actions, action_mask, count=totals.actions)
    total = action
    zero = torch.zeros((), device=device)
    parts = {"action": action.detach(), "pose": zero, "code": zero, "accuracy": zero}
    if config.aids.pose_weight > 0:
        true_pose = torch.from_numpy(windows.poses[rows]).to(device)
        # Summed over the numbers of a pose, as the action loss is over those of an action.
        errors = (at_least_float32(head.end_effector_pose(states)) - true_pose).square().sum(1)
        pose = errors.sum() / totals.windows
        total = total + config.aids.pose_weight * pose
        parts["pose"] = pose.detach()
    if batch.counted is not None:
        codes = torch.from_numpy(windows.codes[rows]).to(device)
        code, found = policy.code_loss(states, codes, batch.counted, count=totals.codes)
        total = total + config.lambda_ce * code
        parts |= {"code": code.detach(), "accuracy": found["accuracy"]}
    return LossParts(total, parts)


def input_codes(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    image: Tensor,
    is_predicted: Tensor,
) -> Tensor:
    """Return the codes [B, H, N] that the policy is given: ground truth or predicted; null codes for none.

    Args:
        config: `code_source` and the number of latent steps.
        policy: predicts greedily.
        windows: hold the ground-truth codes.
        rows: the windows of the batch.
        image: of these windows, [B, 3, px, px] in [-1, 1].
        is_predicted: bool [B], True for windows that are given predicted codes.
    """
    device = image.device
    if config.code_source == "none":
        return null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device)
    predicted_rows = torch.arange(len(rows), device=device)[is_predicted.to(device)]
    # Decoded for the windows that need it alone: decoding costs as many passes as there are codes.
    if not ranks_decode(len(predicted_rows)):
        return torch.from_numpy(windows.codes[rows]).to(device)
    # Decoding reads the layers' weights themselves. A rank without such a window decodes one all the same, since
    # sharded weights are gathered by all ranks together.
    chosen = predicted_rows if len(predicted_rows) else torch.zeros(1, dtype=torch.long, device=device)
    names = [windows.instructions(rows)[i] for i in chosen.tolist()]
    with gathered(policy):
        prompt = policy.prompt(names, image[chosen])
        decoded = policy.decode(prompt, latent_steps=config.latent_steps).codes_BHN
    if len(predicted_rows) == len(rows):
        return decoded
    inputs = torch.from_numpy(windows.codes[rows]).to(device)
    if len(predicted_rows):
        inputs[predicted_rows] = decoded
    return inputs


def ranks_decode(predicted: int) -> bool:
    """Return whether any rank has windows to predict codes for; where weights are whole, whether this one has."""
    return any_rank(predicted > 0) if world_size() > 1 else predicted > 0


def prefix_is_right(inputs: Tensor, codes: Tensor) -> Tensor:
    """Return bool [B, H, N]: True where all codes given before equal the ground truth.

    True everywhere for ground-truth inputs; for predicted ones up to and including the first code that differs.
    """
    # A product over the codes in their order: once one differs, all after it are False.
    same = (inputs == codes).flatten(1)[:, :-1].cumprod(1).bool()
    return torch.cat([torch.ones_like(same[:, :1]), same], dim=1).view_as(codes)


def unlabeled_loss(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    noise: SampleNoise,
    codes_in_batch: Tensor | None = None,
) -> Tensor:
    """Return the code loss of pre-training on windows without actions.

    A policy that acts without codes (`code_source=none`) also predicts each code without those before it.

    Args:
        config: image shift and code source.
        policy: on the device.
        windows: all unlabeled windows.
        rows: the ones of this part.
        device: where they go.
        noise: of the image shift.
        codes_in_batch: valid codes of the whole batch; None: of these rows.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    prompt = policy.prompt(windows.instructions(rows), image)
    # Ground-truth codes for all windows, as in pre-training: the mixture is for windows with actions.
    null = config.code_source == "none"
    inputs = null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device) if null else codes
    loss, _ = policy.code_loss(policy.states(prompt, inputs), codes, valid, count=codes_in_batch)
    return loss
