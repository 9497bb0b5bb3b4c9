"""A world whose state is known: a square arm moves by discrete actions, a smaller square moves by itself.

Smooth random background for each clip, slow drift of brightness. So it can be said exactly what codes should carry (the
arm) and what they should not (the distractor), without a simulator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
ARM_SIDE, DISTRACTOR_SIDE = 12.0, 8.0
SPEED = 1.5  # pixels a frame of the arm; the distractor has half of it


class ToyClips(NamedTuple):
    """x float [B, T, 3, 64, 64] in [-1, 1]; arm, distractor [B, M, 2]: how far right and down each goes, in pixels."""

    x: Tensor
    arm: Tensor
    distractor: Tensor


def toy_clips(batch: int, *, num_frames: int, seed: int, stride: int = 4) -> ToyClips:
    """Clips in which the arm goes left, right or nowhere along one axis, the distractor up, down or nowhere."""
    draw = torch.Generator().manual_seed(seed)
    steps = (num_frames - 1) // stride
    ways = torch.randint(-1, 2, (2, batch, steps), generator=draw).float()
    paths = (ways.repeat_interleave(stride, dim=2) * SPEED).cumsum(2)
    paths = F.pad(paths, (1, 0))  # [2, B, T]
    starts = 20 + 24 * torch.rand(2, batch, 2, generator=draw)  # (x, y) of arm, distractor
    gray, tint = (torch.rand(batch, channels, 4, 4, generator=draw) for channels in (1, 3))
    coarse = gray - 0.7 + 0.3 * tint  # nowhere as red as the arm
    ground = F.interpolate(coarse, size=SIDE, mode="bilinear", align_corners=True)
    drift = 0.1 * (2 * torch.rand(batch, generator=draw) - 1)
    x = ground[:, None].repeat(1, num_frames, 1, 1, 1)
    still = torch.zeros(batch, num_frames)
    x = _paint(x, starts[1], still, 0.5 * paths[1], DISTRACTOR_SIDE, (-0.2, 0.9, 0.0))
    x = _paint(x, starts[0], paths[0], still, ARM_SIDE, (1.0, -0.9, -0.9))
    x = x + drift[:, None, None, None, None] * torch.linspace(0, 1, num_frames)[:, None, None, None]
    nothing = torch.zeros(batch, steps)
    arm = torch.stack([ways[0] * SPEED * stride, nothing], dim=2)
    return ToyClips(x.clamp(-1, 1), arm, torch.stack([nothing, 0.5 * ways[1] * SPEED * stride], dim=2))


def coarse_clips(batch: int, *, num_frames: int, seed: int) -> Tensor:
    """x [B, T, 3, 16, 16] of one latent step: on a board of 4 x 4 fields the arm goes a field left, right, or stays.

    A field is as large as a token of a small renderer, so that where the arm is and where it goes meet in one place.
    """
    draw = torch.Generator().manual_seed(seed)
    way = torch.randint(-1, 2, (batch, 1), generator=draw)
    column, row = torch.randint(1, 3, (batch, 1), generator=draw), torch.randint(0, 4, (batch, 1), generator=draw)
    gray, tint = (torch.rand(batch, channels, 3, 3, generator=draw) for channels in (1, 3))
    ground = F.interpolate(gray - 0.7 + 0.3 * tint, size=16, mode="bilinear", align_corners=True)
    drift = 0.1 * (2 * torch.rand(batch, 1, generator=draw) - 1)
    time = torch.linspace(0, 1, num_frames)
    pixel = torch.arange(16) + 0.5
    across = (2.5 - (pixel - 4 * (column + way * time)[..., None] - 2).abs()).clamp(0, 1)  # soft edges, [B, T, 16]
    along = ((pixel - 4 * row - 2).abs() < 2).float()[:, None]
    cover = (along[..., :, None] * across[..., None, :])[:, :, None]
    x = ground[:, None] * (1 - cover) + cover * torch.tensor((1.0, -0.9, -0.9))[:, None, None]
    return (x + (drift * time)[..., None, None, None]).clamp(-1, 1)


def _paint(
    x: Tensor, start: Tensor, right: Tensor, down: Tensor, side: float, color: tuple[float, float, float]
) -> Tensor:
    """Lay a square with soft edges over every frame; `right` and `down` are its way [B, T] from `start` [B, 2]."""
    pixel = torch.arange(SIDE) + 0.5
    across = (side / 2 + 0.5 - (pixel - (start[:, None, None, 0] + right[..., None])).abs()).clamp(0, 1)
    along = (side / 2 + 0.5 - (pixel - (start[:, None, None, 1] + down[..., None])).abs()).clamp(0, 1)
    cover = (along[..., :, None] * across[..., None, :])[:, :, None]
    return x * (1 - cover) + cover * torch.tensor(color)[:, None, None]


def arm_position(frames: Tensor) -> Tensor:
    """Horizontal center of the red in images [..., 3, 64, 64], in pixels."""
    red = (frames[..., 0, :, :] - torch.maximum(frames[..., 1, :, :], frames[..., 2, :, :]) - 0.6).clamp(min=0)
    weight = red.sum(-2)
    return (weight * (torch.arange(SIDE) + 0.5)).sum(-1) / weight.sum(-1).clamp(min=1e-6)
