"""Sharding: which episodes each rank and reader reads in an epoch, as a pure function of numbers.

No communication between ranks is needed. Each source is an endless sequence of cycles; in a cycle every part comes
once, in an order that depends on (seed, source, cycle). Epoch e of a source with weight w is the segment from e * w to
(e + 1) * w cycles: with weight 1 every episode once, with weight 2 twice, with 0.5 one half now and the other half in
the next epoch. So weights multiply the size of a data set. The segment is cut into equal numbers of episodes, one share
for each (rank, interleaved reader). A share is mostly whole files, with a part of a file at each end. Nothing is read
and thrown away except the records before such a part of a file.

Parts with an unknown number of episodes are never cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .episodes import Part


@dataclass(frozen=True)
class Chunk:
    """Episodes `start` to `stop` (not included) of one part; `stop` is None where the number is not known."""

    part: int
    start: int
    stop: int | None

    def __len__(self) -> int:
        """Return the number of episodes, 1 where it is not known."""
        return 1 if self.stop is None else self.stop - self.start


def epoch_chunks(
    parts: Sequence[Part], *, seed: Sequence[int], epoch: int, weight: float, shard: int, shards: int
) -> list[Chunk]:
    """Return the chunks that share `shard` of `shards` reads in an epoch, in the order of reading.

    Args:
        parts: of one source.
        seed: numbers that decide the order of parts; equal for all shards.
        epoch: from 0 on.
        weight: how often the source is read in an epoch, on average.
        shard: index of the share, from 0 on.
        shards: how many shares there are; together they are the epoch, without overlap.
    """
    known = all(part.episodes is not None for part in parts)
    sizes = np.array([part.episodes if known else 1 for part in parts], np.int64)
    total = int(sizes.sum())
    # The epoch, then this share of it, as episodes on the endless sequence of cycles. Both ends are rounded the same
    # way, so that neighbors meet without gap or overlap.
    first, last = (math.floor(number * weight * total + 0.5) for number in (epoch, epoch + 1))
    begin, end = (first + (last - first) * number // shards for number in (shard, shard + 1))
    chunks: list[Chunk] = []
    for cycle in range(begin // total, math.ceil(end / total)):
        order = np.random.default_rng([*seed, cycle]).permutation(len(parts))
        stops = np.cumsum(sizes[order]) + cycle * total
        # The parts of this cycle that overlap [begin, end).
        low = int(np.searchsorted(stops, begin, side="right"))
        high = int(np.searchsorted(stops, end, side="left"))
        for place in range(low, min(high + 1, len(parts))):
            part = int(order[place])
            stop = int(stops[place])
            start = stop - int(sizes[part])
            inside_begin = max(begin, start) - start
            inside_end = min(end, stop) - start
            if inside_begin < inside_end:
                chunks.append(Chunk(part, inside_begin, inside_end if known else None))
    return chunks
