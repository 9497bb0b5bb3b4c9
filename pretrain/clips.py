"""Clips of the frame cache as training batches: the sampler of this run, and the way to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from vw2_robot.data.clips import Augmentation, ClipBatch, ClipSampler
from vw2_robot.data.frames import FrameCache
from vw2_robot.pixels import to_model_range

from .config import Pretrain


def clip_sampler(config: Pretrain, frames: FrameCache, episodes: list[int], *, augment: bool = True) -> ClipSampler:
    """The sampler over these episodes; batch i is a pure function of (seed, i)."""
    return ClipSampler(
        frames,
        episodes,
        frames=config.dldm.frames,
        stride_s=config.dldm.stride,
        target_hz=config.data.target_hz,
        seed=config.seed,
        augmentation=config.data.augmentation if augment else Augmentation(),
    )


def to_device(batch: ClipBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(clips float [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M]) on the device; pixels travel as uint8."""
    pixels = torch.from_numpy(batch.pixels).to(device, non_blocking=True)
    return to_model_range(pixels), torch.from_numpy(batch.valid).to(device)
