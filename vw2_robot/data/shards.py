"""Who reads which episodes in an epoch: a pure function of numbers, so that no two ranks need to talk.

Each source is an endless row of cycles; in a cycle every part comes once, in an order drawn from (seed, source,
cycle). Epoch e of a source with weight w is the stretch from e * w to (e + 1) * w cycles: with weight 1 every episode
once, with weight 2 twice, with 0.5 one half now and the other half in the next epoch. So weights multiply the size of a
data set. The stretch is cut into equal numbers of episodes, one for each (rank, lane), and each gets the parts that
lie in its cut: mostly whole files, and pieces of the two at its ends. Nothing is read and thrown away except the
records before such a piece.

Parts that do not say how many episodes they hold are never cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .episodes import Part


@dataclass(frozen=True)
class Chunk:
    """Episodes `start` to `stop` of one part; `stop` is None where only reading tells."""

    part: int
    start: int
    stop: int | None

    def __len__(self) -> int:
        """Return the number of episodes, 1 where it is not known."""
        return 1 if self.stop is None else self.stop - self.start


def epoch_chunks(
    parts: Sequence[Part], *, seed: Sequence[int], epoch: int, weight: float, shard: int, shards: int
) -> list[Chunk]:
    """Return what shard number `shard` of `shards` reads in an epoch, in the order of reading.

    Args:
        parts: of one source.
        seed: numbers that decide the order of parts; equal for all shards.
        epoch: from 0 on.
        weight: how often the source is read in an epoch, on average.
        shard: which share, from 0 on.
        shards: how many shares there are; together they are the epoch, without overlap.
    """
    known = all(part.episodes is not None for part in parts)
    sizes = np.array([part.episodes if known else 1 for part in parts], np.int64)
    total = int(sizes.sum())
    first, last = (math.floor(number * weight * total + 0.5) for number in (epoch, epoch + 1))
    begin, end = (first + (last - first) * number // shards for number in (shard, shard + 1))
    chunks: list[Chunk] = []
    for cycle in range(begin // total, math.ceil(end / total)):
        order = np.random.default_rng([*seed, cycle]).permutation(len(parts))
        stops = np.cumsum(sizes[order]) + cycle * total
        low, high = np.searchsorted(stops, begin, side="right"), np.searchsorted(stops, end, side="left")
        for place in range(int(low), min(int(high) + 1, len(parts))):
            part, stop = int(order[place]), int(stops[place])
            start = stop - int(sizes[part])
            inside = max(begin, start) - start, min(end, stop) - start
            if inside[0] < inside[1]:
                chunks.append(Chunk(part, inside[0], inside[1] if known else None))
    return chunks
