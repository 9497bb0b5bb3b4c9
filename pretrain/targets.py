"""What the dLDM's losses are made of: frame error, gray hint, color-jittered target, correlation of digits."""

# B batch · T frames · M latent steps · N codes per step · L digits of a code
from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.models.dldm.dldm import pad_to_stride


def frame_error(
    rec: Float[Tensor, "B T 3 H W"],
    x: Float[Tensor, "B T2 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    with_anchor: bool = True,
    norm: Literal["l2", "l1"] = "l2",
) -> Float[Tensor, ""]:
    """Mean squared (or absolute) error over the frames of valid steps, and frame 0 unless told otherwise.

    Padding never counts. `x` may still lack the last frames that pad T - 1 to a multiple of the stride.
    """
    stride = (rec.shape[1] - 1) // max(1, valid.shape[1])
    real = torch.cat(
        [valid.new_full((len(valid), 1), with_anchor), valid.repeat_interleave(stride, dim=1)], dim=1
    ).float()
    distance = F.mse_loss if norm == "l2" else F.l1_loss
    error = distance(rec.float(), pad_to_stride(x, stride), reduction="none").mean(dim=(2, 3, 4))
    return (error * real).sum() / real.sum().clamp(min=1)


def correlation(codes: Float[Tensor, "B M N L"], valid: Bool[Tensor, "B M"]) -> Float[Tensor, ""]:
    """Mean squared correlation between two different digits of a latent step, over the valid steps of a batch.

    1: all N x L digits of a step say the same; about 1 / (valid steps) for independent ones; 0 at best. Not in the
    paper. Without it, small models put one direction of motion into all digits (docs/concepts.md).
    """
    digits, weight = codes.float().flatten(2), valid.unsqueeze(-1).float()
    count = weight.sum().clamp(min=1)
    digits = (digits - (digits * weight).sum((0, 1)) / count) * weight
    digits = digits / ((digits.square().sum((0, 1)) / count) + 1e-4).sqrt()
    with torch.autocast(digits.device.type, enabled=False):
        between = torch.einsum("bmi,bmj->ij", digits, digits) / count
    pairs = len(between) * (len(between) - 1)
    return (between.square().sum() - between.diagonal().square().sum()) / max(1, pairs)


def make_control_video(rec: Float[Tensor, "B T 3 H W"], *, grayscale: bool) -> Float[Tensor, "B T 3 H W"]:
    """The coarse clip as control: clamped, gray (Rec. 601 luma in all three channels) unless told otherwise."""
    rec = rec.clamp(-1, 1)
    if not grayscale:
        return rec
    luma = torch.tensor([0.299, 0.587, 0.114], device=rec.device)
    return torch.einsum("btchw,c->bthw", rec, luma)[:, :, None].expand_as(rec)


def jitter_color(
    x: Float[Tensor, "B T 3 H W"], *, strength: float, noise: torch.Generator
) -> Float[Tensor, "B T 3 H W"]:
    """Brightness, contrast and channel gains, one draw per clip, the same for all its frames; stays in [-1, 1]."""
    if strength == 0:
        return x
    draw = (torch.rand(len(x), 5, generator=noise) * 2 - 1).to(x.device) * strength
    brightness, contrast = draw[:, 0, None, None, None, None], 1 + draw[:, 1, None, None, None, None]
    gains = 1 + 0.5 * draw[:, None, 2:, None, None]
    return (((x + 1) * gains - 1) * contrast + brightness).clamp(-1, 1)
