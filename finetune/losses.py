"""What fine-tuning minimizes: the action loss on labeled windows, the code loss on labeled and unlabeled ones.

    L = mean over valid actions [ ||a_arm - â_arm||² + w_g L_g ] + lambda_ce · CE(codes)

in normalized units, with L_g the squared error against -1 and +1, or the binary cross-entropy of the gripper's logit;
with `head.bins` the cross-entropy of the bins takes the place of the action loss.
With `aids.pose_weight` the head also predicts the pose of the end effector: one camera far away hides depth from a
policy that learns actions alone, and then it reaches for a place on the same line of sight (docs/lab_log.md).
"""

# B batch · H latent steps · N codes per step · s actions per step · A action dims · R = s·H
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.distributed.sharding import LossParts, gathered
from vw2_robot.models.policy.acting import act, null_codes
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.decoding import sample_codes
from vw2_robot.models.precision import at_least_float32
from vw2_robot.pixels import jitter_color, shift_randomly
from vw2_robot.random_numbers import SampleNoise

from .config import CodeSource, FinetuneConfig
from .labeled_windows import LabeledWindows, VideoWindows


class WindowBatch(NamedTuple):
    """Some labeled windows, with what the policy reads in the slots of its codes."""

    rows: NDArray[np.int64]
    image: Tensor
    """[B, 3, px, px] in [-1, 1], shifted"""
    inputs: Tensor
    """see `input_codes`"""


class Totals(NamedTuple):
    """What the losses of a part of a batch are divided by: numbers of the whole batch, over all ranks."""

    windows: int
    actions: Tensor
    """that are no padding"""
    codes: Tensor
    """of valid latent steps"""


def action_errors(config: FinetuneConfig, predicted: Tensor, actions: Tensor, *, gripper_index: int | None) -> Tensor:
    """Return [B, R]: the loss of each action.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A] in normalized units.
        gripper_index: number of the gripper; None: there is none with two commands.
    """
    # float32 on purpose: under autocast the head gives bfloat16, too coarse for small errors.
    predicted = at_least_float32(predicted)
    weight = torch.ones(actions.shape[-1], device=actions.device)
    if gripper_index is not None:
        # With `bce` the gripper's term is the cross-entropy below, not the squared error.
        weight[gripper_index] = config.gripper_weight if config.gripper_loss == "l2" else 0.0
    # Summed over dimensions, not averaged: the equation of the paper.
    errors = ((predicted - actions).square() * weight).sum(-1)
    if gripper_index is not None and config.gripper_loss == "bce":
        is_open = (actions[..., gripper_index] + 1) / 2  # -1, +1 -> 0, 1
        logit = predicted[..., gripper_index]
        errors = errors + config.gripper_weight * F.binary_cross_entropy_with_logits(logit, is_open, reduction="none")
    return errors


def action_loss(
    config: FinetuneConfig,
    predicted: Tensor,
    actions: Tensor,
    action_mask: Tensor,
    *,
    gripper_index: int | None,
    count: Tensor | None = None,
) -> Tensor:
    """Return the mean of `action_errors` over the actions [B, R] that are no padding.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A], the actions of the data set in normalized units.
        action_mask: [B, R], true or 1 where the action is no padding.
        gripper_index: see `action_errors`.
        count: what the sum is divided by: that of the whole batch where this is a part of it; None: that of this mask.

    Returns:
        A scalar; 0 if all actions are padding.
    """
    total = action_mask.sum() if count is None else count
    errors = action_errors(config, predicted, actions, gripper_index=gripper_index)
    return (errors * action_mask).sum() / total.clamp(min=1)


@torch.no_grad()
def window_batch(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: LabeledWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    hindsight_share: float,
    noise: SampleNoise,
) -> WindowBatch:
    """Read some labeled windows and choose what the policy reads in the slots of its codes.

    Args:
        config: acting mode, code source, image shift and color jitter.
        policy: on the device; predicts codes.
        windows: all training windows.
        rows: the ones of this batch.
        device: where the batch goes.
        hindsight_share: see `input_codes`.
        noise: of image shift, color jitter and codes, in this order.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    image = jitter_color(image, strength=config.image_color_jitter, noise=noise)
    inputs = input_codes(
        config, policy, windows, rows, image, source=config.code_source, hindsight_share=hindsight_share, noise=noise
    )
    return WindowBatch(rows, image, inputs)


def totals_of(windows: LabeledWindows, rows: NDArray[np.int64], device: torch.device) -> Totals:
    """Return the numbers of a whole batch.

    Args:
        windows: all training windows.
        rows: of the whole batch, which every rank knows.
        device: of the numbers.
    """
    actions = int(windows.action_mask[rows].sum())
    codes = int(windows.valid[rows].sum()) * windows.codes.shape[-1]
    return Totals(len(rows), *(torch.tensor(count, device=device) for count in (actions, codes)))


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
    states = policy.states(prompt, batch.inputs, last_code=config.head.last_code)
    actions = torch.from_numpy(windows.actions[rows]).to(device)
    action_mask = torch.from_numpy(windows.action_mask[rows]).to(device)
    if head.centers is not None:
        action = head.bin_loss(states, actions, action_mask, totals.actions)
    else:
        gripper_index = windows.statistics.gripper_index
        action = action_loss(
            config, head(states), actions, action_mask, gripper_index=gripper_index, count=totals.actions
        )
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
    if windows.has_codes:
        codes = torch.from_numpy(windows.codes[rows]).to(device)
        valid = torch.from_numpy(windows.valid[rows]).to(device)
        # Ground truth is the target in every slot, whatever the policy read in the slots before.
        predicting = states[:, :, : policy.config.queries]
        code, found = policy.code_loss(predicting, codes, valid, count=totals.codes)
        total = total + config.lambda_ce * code
        parts |= {"code": code.detach(), "accuracy": found["accuracy"]}
    return LossParts(total, parts)


@torch.no_grad()
def input_codes(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    image: Tensor,
    *,
    source: CodeSource,
    hindsight_share: float,
    noise: SampleNoise,
) -> Tensor:
    """Return what the policy reads in the slots: codes [B, H, N], or embeddings [B, H, N, D] for acting=expected.

    Args:
        config: acting mode and number of latent steps.
        policy: on the device.
        windows: hold the ground-truth codes.
        rows: the windows of the batch.
        image: of these windows, [B, 3, px, px] in [-1, 1].
        source: where codes come from, if the policy reads any.
        hindsight_share: hindsight: share of the slots that get a sampled code.
        noise: of sampled codes, and of the slots that get one.
    """
    device = image.device
    if not config.reads_codes:
        return null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device)
    instructions = windows.instructions(rows)
    if source == "predicted":
        # Decoding reads the layers' weights themselves.
        with gathered(policy):
            prompt = policy.prompt(instructions, image)
            steps = config.latent_steps
            return act(policy, prompt, latent_steps=steps, acting=config.acting, last_code=False, generator=noise).read
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    if source == "ground_truth" or hindsight_share == 0:
        return codes
    # One pass over the ground-truth codes gives the distribution in every slot: a mistake is followed by the truth.
    states = policy.states(policy.prompt(instructions, image), codes)
    with torch.autocast(device.type, enabled=False):
        probabilities = policy.backbone.latent_logits(at_least_float32(states)).softmax(-1)
    sampled = sample_codes(probabilities, noise.rand(*codes.shape[1:]))
    return torch.where(noise.rand(*codes.shape[1:]) < hindsight_share, sampled, codes)


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

    A policy that reads null tokens (acting=parallel or none) also predicts each code without those before it.

    Args:
        config: image shift, color jitter and acting mode.
        policy: on the device.
        windows: all unlabeled windows.
        rows: the ones of this part.
        device: where they go.
        noise: of image shift and color jitter, in this order.
        codes_in_batch: valid codes of the whole batch; None: of these rows.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device).to(config.hardware.dtype)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    image = jitter_color(image, strength=config.image_color_jitter, noise=noise)
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    prompt = policy.prompt(windows.instructions(rows), image)
    # Ground-truth codes in all slots, as in pre-training: hindsight is for windows with actions.
    inputs = codes
    if not config.reads_codes:
        inputs = null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device)
    loss, _ = policy.code_loss(policy.states(prompt, inputs), codes, valid, count=codes_in_batch)
    return loss
