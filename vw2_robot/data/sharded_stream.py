"""The global batches of a training run from logical shards: the same ones for any number of ranks.

The data are divided into V shards, each a `ClipStream` of its own. Which shard gives the clip at position k of the
global batch is a function of (k, step, batch size, V) alone, and neighboring positions come from neighboring shards. So
a rank opens only the shards of its own positions, and a run continues with another number of ranks at the same clips.

    V <= batch: each shard gives batch / V neighboring clips of every batch
    V >  batch: each position has about V / batch shards of its own, which alternate

A shard whose positions belong to two ranks is read and decoded by both, and each keeps its own clips; that never
happens where V is a multiple of ranks x micro-batches. `shuffle_bytes` is divided over the shards, so all ranks
together hold that much. Every shard goes through its epochs at its own pace.

Choosing V: at least ranks x micro-batches, at most the number of files. A shard reads whole files as far as it can;
with fewer files than shards, a file is opened by several, and the records before a shard's part are read for nothing.
"""

# B clips of this rank · T frames · H, W pixels
from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError

from .episodes import Episode, EpisodeSource
from .stream import ClipStream, StreamBatch, StreamOptions, StreamPools, check_identity, stream_identity

_LOG = logging.getLogger(__name__)
MOST_SHARDS = 8
"""shards that are chosen where nothing else is configured"""
MOST_EMPTY_EPOCHS = 20
"""a shard may get held-out or short episodes alone in an epoch, and others in the next one"""
PREFETCH_CLIPS = 32
Snapshot = dict[str, Any]
"""number of a shard -> its position, for some shards"""


def default_shards(sources: Sequence[tuple[EpisodeSource, float]]) -> int:
    """Return the number of shards for these data: two files of the largest source each, at most `MOST_SHARDS`."""
    return max(1, min(MOST_SHARDS, max(len(source.parts()) for source, _ in sources) // 2))


def shards_of_batch(step: int, batch_size: int, shards: int) -> NDArray[np.int64]:
    """Return the shard [batch_size] that gives each clip of a global batch.

    Args:
        step: number of the training step.
        batch_size: clips of the global batch.
        shards: V.
    """
    first, count = _alternatives(batch_size, shards)
    return first + step % count


def _alternatives(batch_size: int, shards: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each position its first shard and the number of shards that alternate there."""
    first = np.arange(batch_size + 1) * shards // batch_size
    return first[:-1], np.maximum(1, np.diff(first))


class ShardedStream:
    """An endless sequence of global batches, of which each rank reads its share; see the top of this file.

    Args:
        sources: each with its weight.
        options: of the clips; `shuffle_bytes` is that of all shards together.
        seed: not negative.
        shards: V.
        threads: number of decoding threads of this rank; with 0 everything runs in the caller's thread.
        keep: which episodes are used; all if None.
        gather: returns the values of all ranks, in order of the ranks, given that of this one.

    Raises:
        InputError: there is nothing to read, or settings exclude each other.
    """

    def __init__(
        self,
        sources: Sequence[tuple[EpisodeSource, float]],
        options: StreamOptions,
        *,
        seed: int,
        shards: int,
        threads: int = 2,
        keep: Callable[[Episode], bool] | None = None,
        gather: Callable[[Snapshot], list[Snapshot]] = lambda value: [value],
    ) -> None:
        if shards < 1:
            raise InputError(f"a stream needs at least one shard, found {shards}")
        self._sources = sources
        self._options = dataclasses.replace(options, shuffle_bytes=max(1, options.shuffle_bytes // shards))
        self._seed = seed
        self._shards = shards
        self._keep = keep
        self._gather = gather
        self._pools = StreamPools.of(threads)
        self._threads = threads
        self._made_with = stream_identity(
            sources,
            self._options,
            seed=seed,
            world_size=shards,
            parts=[list(source.parts()) for source, _ in sources],
        )
        self._streams: dict[int, ClipStream] = {}
        """the shards that this rank reads"""
        self._known: Snapshot = {}
        """positions of all shards when they were last the same on every rank; a shard that is absent is at its start"""
        self._batch_size = 0
        self._rows: NDArray[np.int64] | None = None

    def batch(self, step: int, batch_size: int, rows: NDArray[np.int64] | None = None) -> StreamBatch:
        """Return clips of the next global batch.

        Where batch size or rows differ from those of the call before, all ranks must call it together.

        Args:
            step: number of the training step, one more than in the call before.
            batch_size: clips of the global batch.
            rows: positions int [B] in the global batch of this rank's clips; None: all.

        Raises:
            InputError: too many unreadable images and files, or an epoch without a clip.
        """
        rows = np.arange(batch_size) if rows is None else rows
        if self._rows is None or batch_size != self._batch_size or not np.array_equal(rows, self._rows):
            self._open(batch_size, rows)
        given = shards_of_batch(step, batch_size, self._shards)
        numbers = sorted(set(given[rows].tolist()))
        positions = {number: np.flatnonzero(given == number) for number in numbers}
        for number in numbers:  # all of them decode while the first is collected
            self._streams[number].decode_ahead(len(positions[number]))
        parts = [self._streams[number].batch(len(positions[number])) for number in numbers]
        # A shard's clips go to its positions in order; those of other ranks are dropped here.
        read = np.concatenate([positions[number] for number in numbers])
        place = np.searchsorted(read, rows)
        return _selected(parts, place)

    def snapshot(self) -> Snapshot:
        """Return the positions of this rank's shards after the last batch, as JSON values by number of the shard."""
        found = {}
        for number, stream in self._streams.items():
            state = stream.state()
            del state["made_with"]  # of all shards alike
            found[str(number)] = state
        return found

    def state(self, snapshot: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the position after the last batch as JSON values; all ranks must call it together.

        Args:
            snapshot: of this rank, after an earlier batch; None: after the last one.
        """
        return {"made_with": self._made_with, "shards": self._merged(self.snapshot() if snapshot is None else snapshot)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned, with any number of ranks and threads.

        Raises:
            InputError: the state belongs to other data, options, seed or number of shards.
        """
        if "shards" not in state:  # of a release whose streams had no shards
            state = with_new_keys(dict(state))
            rest = {key: value for key, value in state.items() if key != "made_with"}
            state = {"made_with": state["made_with"], "shards": {"0": rest}}
        found = state["made_with"].get("world_size")
        if found != self._shards:
            raise InputError(
                f"the checkpoint was written by a run whose stream had {found} shards, now it has {self._shards}; "
                f"continue with data.stream_shards={found}, or use another run_dir"
            )
        check_identity(state["made_with"], self._made_with)
        self._close_streams()
        self._known = dict(state["shards"])
        self._rows = None

    def rewind(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to a snapshot of this rank that was taken since batch size or rows changed last.

        Args:
            snapshot: of this rank; an empty one is that before the first batch.
        """
        self._close_streams()
        self._streams = {
            number: self._stream(number, snapshot[str(number)] if snapshot else self._known.get(str(number)))
            for number in (() if self._rows is None else self._numbers(self._batch_size, self._rows))
        }

    def close(self) -> None:
        """Stop the threads and close all files."""
        self._close_streams()
        if self._pools is not None:
            self._pools.close()

    def _merged(self, snapshot: Mapping[str, Any]) -> Snapshot:
        merged = dict(self._known)
        for found in self._gather(dict(snapshot)):
            merged |= found
        return {key: merged[key] for key in sorted(merged, key=int)}

    def _open(self, batch_size: int, rows: NDArray[np.int64]) -> None:
        """Open the shards of these rows where they are now."""
        if self._rows is not None:  # other ranks may hand over some of their shards
            self._known = self._merged(self.snapshot())
        given = shards_of_batch(0, batch_size, self._shards)
        if np.isin(given, given[rows]).sum() > len(rows):
            _LOG.warning(
                "some of the %d shards of the stream belong to several ranks, which all decode their clips; use "
                "data.stream_shards that are a multiple of ranks x hardware.micro_batches",
                self._shards,
            )
        numbers = self._numbers(batch_size, rows)
        for number in self._streams.keys() - numbers:
            self._streams.pop(number).close()
        for number in sorted(numbers - self._streams.keys()):
            self._streams[number] = self._stream(number, self._known.get(str(number)))
        self._batch_size = batch_size
        self._rows = rows

    def _numbers(self, batch_size: int, rows: NDArray[np.int64]) -> set[int]:
        """Return the shards that give these rows, at any step."""
        first, count = _alternatives(batch_size, self._shards)
        pairs = zip(first[rows].tolist(), count[rows].tolist(), strict=True)
        return {begin + index for begin, number in pairs for index in range(number)}

    def _stream(self, number: int, state: Mapping[str, Any] | None) -> ClipStream:
        # The identity of all shards was compared before.
        return ClipStream(
            self._sources,
            self._options,
            seed=self._seed,
            rank=number,
            world_size=self._shards,
            prefetch=max(1, PREFETCH_CLIPS // self._shards),
            keep=self._keep,
            state=None if state is None else {**state, "made_with": {**self._made_with, "rank": number}},
            threads=self._threads,
            pools=self._pools,
            skipped_elsewhere=partial(self._skipped_by_others, number),
            most_empty_epochs=0 if self._shards == 1 else MOST_EMPTY_EPOCHS,
        )

    def _skipped_by_others(self, number: int) -> Iterable[str]:
        return {place for other, stream in self._streams.items() if other != number for place in stream.skipped}

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}

    @property
    def skipped(self) -> dict[str, str]:
        """What this rank has left out so far: where -> why."""
        return {where: why for stream in self._streams.values() for where, why in stream.skipped.items()}


def _selected(parts: Sequence[StreamBatch], place: NDArray[np.int64]) -> StreamBatch:
    """Return the clips at these places of some batches, one behind the other."""
    if len(parts) == 1 and np.array_equal(place, np.arange(len(parts[0].start))):
        return parts[0]  # nothing to copy

    def chosen(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], np.ndarray):
            joined = np.concatenate(values)
            return joined if np.array_equal(place, np.arange(len(joined))) else joined[place]
        flat = [value for some in values for value in some]
        return tuple(flat[index] for index in place.tolist())

    return StreamBatch(**{field.name: chosen(field.name) for field in dataclasses.fields(StreamBatch)})
