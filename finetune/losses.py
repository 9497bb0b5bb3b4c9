"""What fine-tuning minimizes: the action loss on labeled windows, and the code loss on labeled and unlabeled ones.

    L = mean over real actions [ ||a_arm - â_arm||² + w_g L_g ] + lambda_ce · CE(codes)       (method specification 3.4)

in normalized units, with L_g the squared error against -1 and +1, or the binary cross-entropy of the gripper's logit.
With `pose_weight` the head must also tell where the hand is: one camera far away hides depth from a policy that only
learns what to do, and then it reaches for a place that lies on the same line of sight (docs/lab_log.md).
"""

# B batch · H latent steps · N codes per step · s actions per step · A action dims
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
    """total, and its parts for the log."""

    total: Tensor
    action: Tensor
    pose: Tensor
    code: Tensor
    accuracy: Tensor


def action_errors(config: FinetuneConfig, predicted: Tensor, actions: Tensor) -> Tensor:
    """[B, sH]: the loss of each action, in normalized units."""
    predicted = predicted.float()
    weight = torch.ones(actions.shape[-1], device=actions.device)
    weight[GRIPPER_INDEX] = config.gripper_weight if config.gripper_loss == "l2" else 0.0
    errors = ((predicted - actions).square() * weight).sum(-1)
    if config.gripper_loss == "bce":
        wanted = (actions[..., GRIPPER_INDEX] + 1) / 2
        logit = predicted[..., GRIPPER_INDEX]
        errors = errors + config.gripper_weight * F.binary_cross_entropy_with_logits(logit, wanted, reduction="none")
    return errors


def action_loss(config: FinetuneConfig, predicted: Tensor, actions: Tensor, real: Tensor) -> Tensor:
    """Mean of `action_errors` over the actions that are real."""
    return (action_errors(config, predicted, actions) * real).sum() / real.sum().clamp(min=1)


def window_losses(
    config: FinetuneConfig,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabeledWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    own_share: float,
    draw: torch.Generator,
) -> Losses:
    """Losses on these windows; a share `own_share` of them is fed the policy's own codes, the others the teacher's."""
    image = windows.images(rows, image_px=policy.config.image_px, device=device)
    image = shift_randomly(image, most=config.image_shift_px, noise=draw)
    prompt = policy.prompt(windows.words(rows), image)
    own = torch.rand(len(rows), generator=draw) < own_share
    fed = fed_codes(config, policy, windows, rows, prompt, own)
    states = policy.states(prompt, fed)
    actions, real = (torch.from_numpy(array[rows]).to(device) for array in (windows.actions, windows.real))
    action = action_loss(config, head(states), actions, real)
    total = action
    pose = nothing = torch.zeros((), device=device)
    if config.pose_weight > 0:
        true = torch.from_numpy(windows.poses[rows]).to(device)
        pose = (head.end_effector_pose(states).float() - true).square().sum(1).mean()
        total = total + config.pose_weight * pose
    if not windows.taught or config.code_source == "none":
        return Losses(total, action.detach(), pose.detach(), nothing, nothing)
    teacher, valid = (torch.from_numpy(array[rows]).to(device) for array in (windows.codes, windows.valid))
    code, parts = policy.code_loss(states, teacher, valid[..., None] & comparable_codes(fed, teacher))
    total = total + config.lambda_ce * code
    return Losses(total, action.detach(), pose.detach(), code.detach(), parts["accuracy"])


def fed_codes(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    prompt: Prompt,
    own: Tensor,
) -> Tensor:
    """[B, H, N]: the policy's own greedy codes where `own` [B] is True, else the teacher's; the zero code for none."""
    device = prompt.mask_BP.device
    if config.code_source == "none":
        return null_codes(policy, len(rows), latent_steps=config.latent_steps, device=device)
    own_rows = torch.arange(len(rows), device=device)[own.to(device)]
    if len(own_rows) == len(rows):
        return policy.decode(prompt, latent_steps=config.latent_steps).codes_BHN
    fed = torch.from_numpy(windows.codes[rows]).to(device)
    if len(own_rows):
        fed[own_rows] = policy.decode(prompt.rows(own_rows), latent_steps=config.latent_steps).codes_BHN
    return fed


def comparable_codes(fed: Tensor, teacher: Tensor) -> Tensor:
    """[B, H, N]: True where all codes fed before are the teacher's.

    There a code can be compared with the teacher's: everywhere on teacher rows, up to and including the first
    difference on the policy's own. There the code loss is that of pre-training.
    """
    same = (fed == teacher).flatten(1)[:, :-1].cumprod(1).bool()
    return torch.cat([torch.ones_like(same[:, :1]), same], dim=1).view_as(teacher)


def unlabeled_loss(
    config: FinetuneConfig,
    policy: LatentPolicy,
    windows: VideoWindows,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    draw: torch.Generator,
) -> Tensor:
    """The code loss of pre-training on windows without actions.

    A policy that acts without codes also predicts each code without those before it.
    """
    image = windows.images(rows, image_px=policy.config.image_px, device=device)
    image = shift_randomly(image, most=config.image_shift_px, noise=draw)
    teacher, valid = (torch.from_numpy(array[rows]).to(device) for array in (windows.codes, windows.valid))
    prompt = policy.prompt(windows.words(rows), image)
    fed = fed_codes(config, policy, windows, rows, prompt, torch.zeros(len(rows), dtype=torch.bool))
    loss, _ = policy.code_loss(policy.states(prompt, fed), teacher, valid)
    return loss
