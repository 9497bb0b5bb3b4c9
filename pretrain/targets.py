"""The parts of the dLDM's losses: frame error, code correlation, control video, color-jittered target."""

# B batch · T frames · M latent steps · N codes per step · L FSQ dimensions of a code
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
    """Return the mean squared (or absolute) error over frame 0 and the frames of valid steps; padding never counts.

    Args:
        rec: the reconstruction.
        x: what it should be. May still lack the last frames, which pad T - 1 to a multiple of the stride.
        valid: the latent steps that are no padding; each covers the `stride` frames that end it.
        with_anchor: False leaves frame 0 out, which the decoder is given.
        norm: l2 squares differences, l1 takes their size.
    """
    # From the shapes: with `dldm.gap` the decoder makes fewer frames of a step than its temporal stride.
    stride = (rec.shape[1] - 1) // max(1, valid.shape[1])
    frame_mask = torch.cat(
        [valid.new_full((len(valid), 1), with_anchor), valid.repeat_interleave(stride, dim=1)], dim=1
    ).float()
    distance = F.mse_loss if norm == "l2" else F.l1_loss
    error = distance(rec.float(), pad_to_stride(x, stride), reduction="none").mean(dim=(2, 3, 4))
    return (error * frame_mask).sum() / frame_mask.sum().clamp(min=1)


def correlation(codes: Float[Tensor, "B M N L"], valid: Bool[Tensor, "B M"]) -> Float[Tensor, ""]:
    """Return the mean squared correlation of two different FSQ dimensions of a latent step, over valid steps.

    1 if all N x L dimensions of a step are copies of one another, about 1 / (valid steps) if they are independent, 0 at
    best. Not in the paper. Without it, small models put one direction of motion into all dimensions
    (docs/concepts.md).
    """
    values = codes.float().flatten(2)
    weight = valid.unsqueeze(-1).float()
    count = weight.sum().clamp(min=1)
    # Standardize each dimension over the valid steps; the constant keeps a dimension that never varies finite.
    values = (values - (values * weight).sum((0, 1)) / count) * weight
    values = values / ((values.square().sum((0, 1)) / count) + 1e-4).sqrt()
    # In float32 also under autocast: the sum over all steps of a batch loses too much in bfloat16.
    with torch.autocast(values.device.type, enabled=False):
        between = torch.einsum("bmi,bmj->ij", values, values) / count
    pairs = len(between) * (len(between) - 1)
    return (between.square().sum() - between.diagonal().square().sum()) / max(1, pairs)


def make_control_video(rec: Float[Tensor, "B T 3 H W"], *, grayscale: bool) -> Float[Tensor, "B T 3 H W"]:
    """Return the coarse clip as control: clamped to [-1, 1], and with `grayscale` gray in all three channels."""
    # As in the release: clamped, then gray (method 1.8).
    rec = rec.clamp(-1, 1)
    if not grayscale:
        return rec
    luma = torch.tensor([0.299, 0.587, 0.114], device=rec.device)  # ITU-R BT.601
    return torch.einsum("btchw,c->bthw", rec, luma)[:, :, None].expand_as(rec)


def jitter_color(
    x: Float[Tensor, "B T 3 H W"], *, strength: float, noise: torch.Generator
) -> Float[Tensor, "B T 3 H W"]:
    """Return the clips with changed brightness, contrast and channel gains, still in [-1, 1].

    Args:
        x: pixels in [-1, 1].
        strength: largest change; 0 returns `x` itself and samples nothing.
        noise: on the CPU; one sample per clip, so all frames of a clip change alike.
    """
    if strength == 0:
        return x
    change = (torch.rand(len(x), 5, generator=noise) * 2 - 1).to(x.device) * strength
    brightness = change[:, 0, None, None, None, None]
    contrast = 1 + change[:, 1, None, None, None, None]
    gains = 1 + 0.5 * change[:, None, 2:, None, None]  # of red, green and blue
    # Gains about black, which is -1; contrast about mid-gray, which is 0.
    return (((x + 1) * gains - 1) * contrast + brightness).clamp(-1, 1)
