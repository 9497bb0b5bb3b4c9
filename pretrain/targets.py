"""What the dLDM's losses compare with: frame error over real frames, the grey hint, the colour-jittered target."""

# B batch · T frames · M latent steps
from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.models.dldm import pad_to_stride


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


def make_hint(rec: Float[Tensor, "B T 3 H W"], *, grayscale: bool) -> Float[Tensor, "B T 3 H W"]:
    """The coarse clip as control: clamped, grey (Rec. 601 luma in all three channels) unless told otherwise."""
    rec = rec.clamp(-1, 1)
    if not grayscale:
        return rec
    luma = torch.tensor([0.299, 0.587, 0.114], device=rec.device)
    return torch.einsum("btchw,c->bthw", rec, luma)[:, :, None].expand_as(rec)


def jitter_colour(
    x: Float[Tensor, "B T 3 H W"], *, strength: float, noise: torch.Generator
) -> Float[Tensor, "B T 3 H W"]:
    """Brightness, contrast and channel gains, one draw per clip, the same for all its frames; stays in [-1, 1]."""
    if strength == 0:
        return x
    draw = (torch.rand(len(x), 5, generator=noise) * 2 - 1).to(x.device) * strength
    brightness, contrast = draw[:, 0, None, None, None, None], 1 + draw[:, 1, None, None, None, None]
    gains = 1 + 0.5 * draw[:, None, 2:, None, None]
    return (((x + 1) * gains - 1) * contrast + brightness).clamp(-1, 1)
