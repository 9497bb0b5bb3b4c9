"""The parts of the dLDM's losses: frame error, code correlation, control video."""

# B batch · T frames · M latent steps · N codes per step · L FSQ dimensions of a code
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.distributed.batch_share import StatisticsGroups
from vw2_robot.models.dldm.dldm import pad_to_stride
from vw2_robot.models.perceptual import PerceptualDistance
from vw2_robot.models.precision import at_least_float32
from vw2_robot.pixels import resize_video


def frame_error(
    rec: Float[Tensor, "B T 3 H W"],
    x: Float[Tensor, "B T2 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    with_anchor: bool = True,
    norm: Literal["l2", "l1"] = "l2",
    frames: Tensor | float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared (or absolute) error over frame 0 and the frames of valid steps; padding never counts.

    Args:
        rec: the reconstruction.
        x: what it should be. May still lack the last frames, which pad T - 1 to a multiple of the stride.
        valid: the latent steps that are no padding; each covers the `stride` frames that end it.
        with_anchor: False leaves frame 0 out, which the decoder is given.
        norm: l2 squares differences, l1 takes their size.
        frames: what the sum of the errors is divided by: the frames of the whole batch where this is a part of it;
            None: those that count here.
    """
    stride = _stride(rec, valid)
    distance = F.mse_loss if norm == "l2" else F.l1_loss
    error = distance(at_least_float32(rec), pad_to_stride(x, stride), reduction="none").mean(dim=(2, 3, 4))
    return _mean_of_frames(error, valid, with_anchor=with_anchor, frames=frames)


def perceptual_error(
    distance: PerceptualDistance,
    rec: Float[Tensor, "B T 3 H W"],
    x: Float[Tensor, "B T2 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    frames: Tensor | float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean perceptual distance over frame 0 and the frames of valid steps.

    Args:
        distance: of two images.
        rec: the reconstruction.
        x: what it should be, see `frame_error`.
        valid: the latent steps that are no padding.
        frames: see `frame_error`.
    """
    target = pad_to_stride(x, _stride(rec, valid))
    found = distance(rec.flatten(0, 1), target.flatten(0, 1)).unflatten(0, rec.shape[:2])
    return _mean_of_frames(at_least_float32(found), valid, with_anchor=True, frames=frames)


def _stride(rec: Float[Tensor, "B T 3 H W"], valid: Bool[Tensor, "B M"]) -> int:
    """Return the frames of a latent step: with `dldm.gap` the decoder makes fewer than its temporal stride."""
    return (rec.shape[1] - 1) // max(1, valid.shape[1])


def _mean_of_frames(
    error: Float[Tensor, "B T"], valid: Bool[Tensor, "B M"], *, with_anchor: bool, frames: Tensor | float | None
) -> Float[Tensor, ""]:
    stride = (error.shape[1] - 1) // max(1, valid.shape[1])
    counted = torch.cat([valid.new_full((len(valid), 1), with_anchor), valid.repeat_interleave(stride, dim=1)], dim=1)
    return (error * counted).sum() / (counted.sum().clamp(min=1) if frames is None else frames)


def correlation(
    codes: Float[Tensor, "B M N L"], valid: Bool[Tensor, "B M"], groups: StatisticsGroups | None = None
) -> Float[Tensor, ""]:
    """Return the mean squared correlation of two different FSQ dimensions of a latent step, over valid steps.

    1 if all N x L dimensions of a step are copies of one another, about 1 / (valid steps) if they are independent, 0 at
    best. Not in the paper. Without it, small models put one direction of motion into all dimensions
    (docs/concepts.md).

    Args:
        codes: of the clips of this rank.
        valid: the latent steps that are no padding.
        groups: clips over which a correlation is taken, and the mean over the groups returned; None: all clips.
    """
    groups = groups or StatisticsGroups()
    # In float32 or more also under autocast: the sum over all steps of a batch loses too much in bfloat16.
    with torch.autocast(codes.device.type, enabled=False):
        values = at_least_float32(codes).flatten(2)
        batch = len(values)
        weight = valid.unsqueeze(-1).to(values)
        count = groups.sums(weight.sum(1)).clamp(min=1)  # [G, 1]
        mean = groups.spread(groups.sums((values * weight).sum(1)) / count, batch)
        # Standardize each dimension over the valid steps; the constant keeps a dimension that never varies finite.
        values = (values - mean[:, None].to(values)) * weight
        variance = groups.spread(groups.sums(values.square().sum(1)) / count, batch)
        values = values / (variance[:, None] + 1e-4).sqrt().to(values)
        between = groups.sums(torch.einsum("bmi,bmj->bij", values, values)) / count[:, :, None]
    dims = between.shape[-1]
    diagonal = between.diagonal(dim1=1, dim2=2)
    pairs = max(1, dims * (dims - 1))
    return ((between.square().sum((1, 2)) - diagonal.square().sum(1)) / pairs).mean().to(values)


def make_control_video(
    rec: Float[Tensor, "B T 3 h w"], *, size: Sequence[int], grayscale: bool
) -> Float[Tensor, "B T 3 H W"]:
    """Return the coarse clip as control: clamped to [-1, 1], and as large as the VDM's frames.

    Args:
        rec: the coarse clip.
        size: height and width of the VDM's frames; a smaller clip is enlarged, bilinear.
        grayscale: make it gray, in all three channels.
    """
    # As in the release: clamped, then gray (method 1.8).
    rec = resize_video(rec.clamp(-1, 1), *size)
    if not grayscale:
        return rec
    luma = torch.tensor([0.299, 0.587, 0.114], device=rec.device, dtype=rec.dtype)  # ITU-R BT.601
    return torch.einsum("btchw,c->bthw", rec, luma)[:, :, None].expand_as(rec)
