"""Which samples of a global batch a rank computes, and which clips share their statistics.

A batch of `batch_size` samples is computed in `micro_batches` forward passes on every rank. Micro-batch j of all ranks
together holds the j-th segment of the batch, and rank r the r-th share of that segment. So a group of consecutive clips
whose statistics are taken together lies within one micro-batch, whatever the number of ranks.
"""

# B samples of this rank in one micro-batch · G groups that this rank sees · A all groups of a micro-batch
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.errors import InputError

from . import ranks


@dataclass(frozen=True)
class BatchShare:
    """The part of every global batch that this rank computes.

    Raises:
        InputError: ranks and micro-batches do not divide the batch.
    """

    batch_size: int
    """samples of the global batch"""
    micro_batches: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.world_size * self.micro_batches):
            raise InputError(
                f"WORLD_SIZE={self.world_size} and hardware.micro_batches={self.micro_batches} do not divide a batch "
                f"of {self.batch_size}; use ranks and micro-batches whose product divides batch_size, or another "
                "batch_size (which is another run)"
            )

    @classmethod
    def of(cls, batch_size: int, *, micro_batches: int = 1) -> BatchShare:
        """Return the share of this rank."""
        return cls(batch_size, micro_batches, ranks.rank(), ranks.world_size())

    @property
    def size(self) -> int:
        """Return B, the samples of this rank in one micro-batch."""
        return self.batch_size // (self.world_size * self.micro_batches)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Return the positions in the global batch of all samples of this rank, micro-batch by micro-batch."""
        segments = np.arange(self.batch_size).reshape(self.micro_batches, self.world_size, self.size)
        return np.ascontiguousarray(segments[:, self.rank]).reshape(-1)

    def slices(self) -> list[slice]:
        """Return for each micro-batch where its samples are in `rows`."""
        return [slice(i * self.size, (i + 1) * self.size) for i in range(self.micro_batches)]


def shared_chunks(count: int, size: int) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Yield this rank's positions among `count` samples, a few at a time, and whether they count.

    Every rank gets as many chunks as the others, since sharded modules run in step; what is left over does not count.

    Args:
        count: samples of all ranks.
        size: most of one chunk.
    """
    size = min(size, -(-count // ranks.world_size()))
    for first in range(
        ranks.rank() * size,
        -(-count // (size * ranks.world_size())) * size * ranks.world_size(),
        size * ranks.world_size(),
    ):
        rows = np.arange(first, min(count, first + size))
        yield (rows, True) if len(rows) else (np.array([count - 1]), False)


class PartOfBatch(NamedTuple):
    """What one forward pass is of its global batch: the losses of all passes and ranks add up to that of the batch."""

    share: float
    """of the global batch, 1 / (ranks x micro-batches): the weight of a mean over samples"""
    clips: int
    """samples of the global batch"""
    valid_steps: Tensor
    """valid latent steps of the global batch, a scalar"""

    def frames(self, per_step: int) -> Tensor:
        """Return the frames of the global batch that count: the first of each clip, and those of valid steps."""
        return self.clips + per_step * self.valid_steps


class StatisticsGroups:
    """Groups of consecutive clips of a micro-batch over all ranks, within which statistics are taken.

    Args:
        clips: of a group; None: all clips of a micro-batch are one group.
    """

    def __init__(self, clips: int | None = None) -> None:
        self.clips = clips

    def place(self, batch: int, device: torch.device) -> tuple[Float[Tensor, "G B"], bool]:
        """Return which group each clip of this rank belongs to (ones and zeros), and whether groups span ranks.

        Raises:
            InputError: the groups do not divide a micro-batch.
        """
        size = ranks.world_size()
        clips = self.clips or batch * size
        if batch % clips == 0:  # every group lies within one rank
            group = torch.arange(batch, device=device) // clips
            return _members(group, batch // clips), False
        if batch * size % clips:
            raise InputError(
                f"train_dldm.statistics_group={clips} does not divide a micro-batch of {batch * size} clips over "
                f"{size} ranks; use a divisor of it, fewer ranks, or fewer hardware.micro_batches"
            )
        group = (ranks.rank() * batch + torch.arange(batch, device=device)) // clips
        return _members(group, batch * size // clips), True

    def sums(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "G ..."]:
        """Return the sum of each group, over ranks where it spans them; gradients flow to all clips of the group.

        Computed in float64: the sums of one rank and of several then round to the same numbers nearly always.
        """
        member, spans = self.place(len(values), values.device)
        with torch.autocast(values.device.type, enabled=False):
            sums = (member @ values.to(member.dtype).flatten(1)).unflatten(1, values.shape[1:])
        return ranks.global_sum(sums) if spans else sums

    def spread(self, statistics: Float[Tensor, "G ..."], batch: int) -> Float[Tensor, "B ..."]:
        """Return for each clip of this rank the value of its group."""
        member, _ = self.place(batch, statistics.device)
        with torch.autocast(statistics.device.type, enabled=False):
            return (member.T.to(statistics.dtype) @ statistics.flatten(1)).unflatten(1, statistics.shape[1:])

    def of_all_ranks(self, statistics: Float[Tensor, "G ..."], batch: int) -> Float[Tensor, "A ..."]:
        """Return the statistics of all groups of a micro-batch, in order and without gradient.

        Args:
            statistics: of the groups that this rank sees.
            batch: clips of this rank.
        """
        _, spans = self.place(batch, statistics.device)
        if spans or ranks.world_size() == 1:
            return statistics
        found = [torch.empty_like(statistics) for _ in range(ranks.world_size())]
        dist.all_gather(found, statistics.contiguous())
        return torch.cat(found)


def _members(group: Int[Tensor, " B"], groups: int) -> Float[Tensor, "G B"]:
    exact = torch.float32 if group.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return torch.nn.functional.one_hot(group, groups).T.to(exact)
