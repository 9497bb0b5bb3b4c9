"""The clips of a global batch that one rank computes, on its device, and the held-out clips that ranks share."""

# B clips of this rank · T frames · M latent steps
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vw2_robot.data.clips import ClipSampler
from vw2_robot.devices import Hardware
from vw2_robot.distributed.batch_share import BatchShare, PartOfBatch, shared_chunks
from vw2_robot.distributed.ranks import global_sum
from vw2_robot.random_numbers import SampleNoise

from .clips import TrainingClips, to_device


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's clips of one training step, and what is known of all others."""

    share: BatchShare
    x: Float[Tensor, "B T 3 H W"]
    """pixels in [-1, 1]"""
    valid: Bool[Tensor, "B M"]
    """latent steps that are no padding"""
    valid_steps: Tensor
    """how many there are in the global batch"""

    @property
    def parts(self) -> list[slice]:
        """Return where the clips of each micro-batch are."""
        return self.share.slices()

    @property
    def part_of_batch(self) -> PartOfBatch:
        """Return what each micro-batch is of the global batch."""
        share = 1 / (self.share.world_size * self.share.micro_batches)
        return PartOfBatch(share, self.share.batch_size, self.valid_steps)

    def noise(self, seed: int, step: int, part: slice, *, stream: int) -> SampleNoise:
        """Return the random numbers of the clips of a micro-batch.

        Args:
            seed: of the run.
            step: training step.
            part: one of `parts`.
            stream: separates uses of randomness.
        """
        return SampleNoise(seed, step, stream=stream, samples=self.share.rows[part].tolist(), device=self.x.device)


def batch_on_device(
    training: TrainingClips, step: int, share: BatchShare, hardware: Hardware, *, device: torch.device
) -> GlobalBatch:
    """Read the clips of one step that this rank computes, and count the valid steps of all.

    Args:
        training: where they are read.
        step: training step.
        share: of this rank.
        hardware: precision of the pixels.
        device: of the tensors.
    """
    x, valid = to_device(training.batch(step, share), device)
    return GlobalBatch(share, x.to(hardware.dtype), valid, global_sum(valid.sum()))


def validation_chunks(
    held_out: ClipSampler, count: int, hardware: Hardware, *, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Yield this rank's clips of the first batch of a sampler, a few at a time.

    Args:
        held_out: where they are read.
        count: clips of the batch.
        hardware: precision, and how many are in one chunk.
        device: of the tensors.

    Yields:
        (positions in the batch [B], pixels [B, T, 3, H, W] in [-1, 1], valid steps [B, M]).
    """
    for rows, counts in shared_chunks(count, hardware.validation_batch):
        x, valid = to_device(held_out.batch(0, count, rows=rows), device)
        yield rows, x.to(hardware.dtype), valid & counts


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's weights."""
    return next(module.parameters()).device
