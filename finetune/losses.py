"""What fine-tuning minimizes: the action loss on labeled windows, the code loss on labeled and unlabeled ones.

    L = mean over valid actions [ ||a_arm - â_arm||² + w_g L_g ] + lambda_ce · CE(codes)

in normalized units, with L_g the squared error against -1 and +1, or the binary cross-entropy of the gripper's logit.
With `pose_weight` the head also predicts the pose of the end effector: one camera far away hides depth from a policy
that learns actions alone, and then it reaches for a place on the same line of sight (docs/lab_log.md).
"""

# B batch · H latent steps · N codes per step · s actions per step · A action dims · R = s·H
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.models.policy.acting import null_codes
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy, Prompt
from vw2_robot.pixels import shift_randomly

from .config import FinetuneConfig
from .labeled_windows import LabeledWindows, VideoWindows


class Losses(NamedTuple):
    """The total, which is minimized, and its parts without gradient, for the log."""

    total: Tensor
    action: Tensor
    pose: Tensor
    code: Tensor
    accuracy: Tensor


def action_errors(config: FinetuneConfig, predicted: Tensor, actions: Tensor) -> Tensor:
    """Return [B, R]: the loss of each action.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A] in normalized units.
    """
    # float32 on purpose: under autocast the head gives bfloat16, too coarse for small errors.
    predicted = predicted.float()
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


def action_loss(config: FinetuneConfig, predicted: Tensor, actions: Tensor, action_mask: Tensor) -> Tensor:
    """Return the mean of `action_errors` over the actions [B, R] that are no padding.

    Args:
        config: `gripper_loss` and `gripper_weight`.
        predicted: [B, R, A] of the head, in normalized units; with `bce` the gripper's is a logit.
        actions: [B, R, A], the actions of the data set in normalized units.
        action_mask: [B, R], true or 1 where the action is no padding.

    Returns:
        A scalar; 0 if all actions are padding.
    """
    return (action_errors(config, predicted, actions) * action_mask).sum() / action_mask.sum().clamp(min=1)


def window_losses(
    config: FinetuneConfig,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabeledWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    predicted_share: float,
    noise: torch.Generator,
) -> Losses:
    """Return the losses on some labeled windows.

    Args:
        config: weights and switches.
        policy: on the device.
        head: on the device.
        windows: all training windows.
        rows: the ones of this batch.
        device: where the batch goes.
        predicted_share: chance of each window to be given the policy's own predicted codes instead of ground-truth
            ones.
        noise: of the image shift, then of that choice.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    prompt = policy.prompt(windows.instructions(rows), image)
    is_predicted = torch.rand(len(rows), generator=noise) < predicted_share
    inputs = input_codes(config, policy, windows, rows, prompt, is_predicted)
    # A pass over given codes, also where they were just predicted: `decode` makes its states without gradient.
    states = policy.states(prompt, inputs)
    actions = torch.from_numpy(windows.actions[rows]).to(device)
    action_mask = torch.from_numpy(windows.action_mask[rows]).to(device)
    action = action_loss(config, head(states), actions, action_mask)
    total = action
    zero = torch.zeros((), device=device)
    pose = zero
    if config.pose_weight > 0:
        true_pose = torch.from_numpy(windows.poses[rows]).to(device)
        # Summed over the numbers of a pose, as the action loss is over those of an action.
        pose = (head.end_effector_pose(states).float() - true_pose).square().sum(1).mean()
        total = total + config.pose_weight * pose
    # From scratch there is no dLDM and so nothing to compare codes with, also for `code_source=predicted`.
    if not windows.has_codes or config.code_source == "none":
        return Losses(total, action.detach(), pose.detach(), zero, zero)
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    # Only where the codes before are right is the code loss that of pre-training.
    code, parts = policy.code_loss(states, codes, valid[..., None] & prefix_is_right(inputs, codes))
    total = total + config.lambda_ce * code
    return Losses(total, action.detach(), pose.detach(), code.detach(), parts["accuracy"])


def input_codes(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    prompt: Prompt,
    is_predicted: Tensor,
) -> Tensor:
    """Return the codes [B, H, N] that the policy is given: ground truth or predicted; null codes for none.

    Args:
        config: `code_source` and the number of latent steps.
        policy: predicts greedily.
        windows: hold the ground-truth codes.
        rows: the windows of the batch.
        prompt: of these windows.
        is_predicted: bool [B], True for windows that are given predicted codes.
    """
    device = prompt.mask_BP.device
    if config.code_source == "none":
        return null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device)
    predicted_rows = torch.arange(len(rows), device=device)[is_predicted.to(device)]
    # Decoded for the windows that need it alone: decoding costs as many passes as there are codes.
    if len(predicted_rows) == len(rows):
        return policy.decode(prompt, latent_steps=config.latent_steps).codes_BHN
    inputs = torch.from_numpy(windows.codes[rows]).to(device)
    if len(predicted_rows):
        decoded = policy.decode(prompt.rows(predicted_rows), latent_steps=config.latent_steps)
        inputs[predicted_rows] = decoded.codes_BHN
    return inputs


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
    noise: torch.Generator,
) -> Tensor:
    """Return the code loss of pre-training on windows without actions.

    A policy that acts without codes (`code_source=none`) also predicts each code without those before it.

    Args:
        config: image shift and code source.
        policy: on the device.
        windows: all unlabeled windows.
        rows: the ones of this batch.
        device: where the batch goes.
        noise: of the image shift.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device)
    image = shift_randomly(image, most=config.image_shift_px, noise=noise)
    codes = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    prompt = policy.prompt(windows.instructions(rows), image)
    # Ground-truth codes for all windows, as in pre-training: the mixture is for windows with actions.
    inputs = input_codes(config, policy, windows, rows, prompt, torch.zeros(len(rows), dtype=torch.bool))
    loss, _ = policy.code_loss(policy.states(prompt, inputs), codes, valid)
    return loss
