"""Shuffle blocks: episodes of many sources in random order, in blocks of a given number of bytes.

A block is filled with episodes until it holds half of `shuffle_bytes`; then all its windows are put in random order.
While one block is in use, the next ones are read, as long as everything held stays within `shuffle_bytes` (plus one
episode). Images stay compressed. The size of a block counts the compressed bytes of all images that some window shows,
each image once, however many windows overlap. Other images are dropped at once, and an episode is released with its
last window. An epoch ends with its own, possibly small, block.

The next source is sampled in proportion to the number of episodes that each source still has in this epoch, so a
mixture keeps its proportions to the end. Within a source, `interleaved_readers` files are open at the same time.

A `Position` says in a few numbers where a block begins. A `BlockReader` fills equal blocks for equal positions,
whatever was read before, so an exact resume needs no stored buffer.

A damaged part or an empty episode is listed in `ShuffleBlock.skipped` and left out. After damage, reading is tried once
more behind the damaged episode; if that fails too, the rest of the part is left out. Episodes that a source skips by
itself are counted here too and not against the source's own limit, which would grow with every epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.limits import Rate

from .clips import clip_offsets, make_windows
from .episodes import Episode, EpisodeSource, SkippedEpisodes
from .shards import Chunk, epoch_chunks

# n windows of a block · S sources · R interleaved readers of a source


@dataclass(frozen=True)
class WindowOptions:
    """How episodes are cut into windows; see `vw2_robot.data.clips`."""

    num_frames: int
    """frames of a window, read up to the next multiple of the temporal stride plus one"""
    temporal_stride: int = 4
    """frames of a latent step"""
    target_hz: Rate | None = None
    """frames per second of a window; null: those of the source, or set by gap_seconds"""
    gap_seconds: Rate | None = None
    """seconds of a latent step; null: set by the frame rate"""
    window_stride: int = 1
    """clip frames between the starts of two windows"""

    def __post_init__(self) -> None:
        # Called for its checks: it raises for frames, strides and times that cannot be used together.
        clip_offsets(
            self.num_frames,
            temporal_stride=self.temporal_stride,
            hz=1.0,
            target_hz=self.target_hz,
            gap_seconds=self.gap_seconds,
        )
        if self.window_stride < 1:
            raise InputError(f"window_stride must be at least 1, found {self.window_stride}")


@dataclass(frozen=True)
class Position:
    """Where a block begins.

    `readers` holds for each interleaved reader the number of its present chunk and how many episodes of that chunk were
    read. It is empty at the beginning of an epoch.
    """

    epoch: int
    block: int
    readers: tuple[tuple[int, int], ...] = ()
    windows: int = 0
    """windows made so far in this epoch"""


@dataclass(eq=False)
class ShuffleBlock:
    """Episodes and their n windows in random order: `owner` [n] is the episode's index here, `start` [n] its frame."""

    begin: Position
    end: Position
    episodes: list[Episode]
    owner: NDArray[np.int64]
    start: NDArray[np.int64]
    sizes: list[int]
    """bytes of each episode"""
    skipped: dict[str, str]
    """what was left out: where -> why"""


@dataclass
class _InterleavedReader:
    """One open file of one source, and the chunks that are read through it one after the other."""

    source: int
    chunks: list[Chunk]
    chunk: int = 0
    used: int = 0
    stream: Iterator[Episode] | None = None

    def __post_init__(self) -> None:
        self._after = sum(map(len, self.chunks[self.chunk + 1 :]))

    def left(self) -> int:
        """Return how many episodes are still to come, as far as known."""
        if self.chunk == len(self.chunks):
            return 0
        present = self.chunks[self.chunk]
        return self._after + (1 if present.stop is None else len(present) - self.used)

    def next_episode(self, source: EpisodeSource) -> tuple[Episode | None, str]:
        """Return the next episode, or None and the damage found; the damage is "" at the end of the part."""
        chunk = self.chunks[self.chunk]
        try:
            if self.stream is None:
                self.stream = source.read(chunk.part, start=chunk.start + self.used)
            return next(self.stream), ""
        except StopIteration:
            return None, ""
        except InputError as error:
            return None, str(error)

    def advance(self, episodes: int) -> bool:
        """Count some episodes of the present chunk as read; return whether it has more."""
        self.used += episodes
        present = self.chunks[self.chunk]
        if present.stop is not None and self.used >= len(present):
            self.finish()
            return False
        return True

    def finish(self) -> None:
        """Leave the present chunk."""
        self.close()
        self.chunk += 1
        self.used = 0
        self._after -= sum(map(len, self.chunks[self.chunk : self.chunk + 1]))

    def close(self) -> None:
        """Close the open file."""
        close = getattr(self.stream, "close", None)
        if close is not None:
            close()
        self.stream = None


@dataclass(frozen=True, eq=False)
class _CutEpisode:
    """An episode with the starts [n] of its windows and the bytes of the images that they show."""

    episode: Episode
    start: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, episode: Episode, options: WindowOptions) -> _CutEpisode:
        """Cut an episode into windows and drop the images that none of them shows."""
        windows = make_windows(
            len(episode),
            num_frames=options.num_frames,
            cache_stride=options.window_stride,
            hz=episode.hz,
            temporal_stride=options.temporal_stride,
            target_hz=options.target_hz,
            gap_seconds=options.gap_seconds,
        )
        # Dropped images become b"", so that the indices of the others stay.
        shown = np.zeros(len(episode), bool)
        shown[windows.frame_ids] = True
        images = tuple(image if use else b"" for image, use in zip(episode.images, shown.tolist(), strict=True))
        size = sum(image.nbytes if isinstance(image, np.ndarray) else len(image) for image in images)
        return cls(dataclasses.replace(episode, images=images), windows.start, size)


class _UnlimitedSkips(SkippedEpisodes):
    """Episodes that a source skips by itself, without a limit: the stream counts each of them once, not per epoch."""

    def add(self, error: InputError, *, count: int = 1) -> None:
        """Store the message."""
        self.messages += [str(error)] * count

    def take(self) -> list[str]:
        """Return the messages since the last call; for each of them one number of the part passed."""
        messages = self.messages
        self.messages = []
        return messages


class BlockReader:
    """Reader of the shuffle blocks of one stream.

    Args:
        sources: each with its weight, see `vw2_robot.data.shards`.
        options: how episodes are cut into windows.
        seed: seed of all random choices, together with epoch, rank and block.
        rank: of this stream.
        world_size: how many streams share the data.
        interleaved_readers: files of one source that are open at the same time.
        block_bytes: size of a block.
        keep: which episodes are used; all if None.
        most_empty_epochs: how many epochs of this stream may give no window, one after the other.

    Raises:
        InputError: a source has no episodes, or a weight that is not positive.
    """

    def __init__(
        self,
        sources: Sequence[tuple[EpisodeSource, float]],
        options: WindowOptions,
        *,
        seed: int,
        rank: int,
        world_size: int,
        interleaved_readers: int,
        block_bytes: int,
        keep: Callable[[Episode], bool] | None = None,
        most_empty_epochs: int = 0,
    ) -> None:
        self._options = options
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._readers_per_source = interleaved_readers
        self._block_bytes = block_bytes
        self._keep = keep
        self._most_empty_epochs = most_empty_epochs
        self._sources: list[tuple[EpisodeSource, float]] = []
        self.parts = [list(source.parts()) for source, _ in sources]
        for (source, weight), parts in zip(sources, self.parts, strict=True):
            if not weight > 0:
                raise InputError(f"source {source.name}: the weight must be positive, found {weight}; or leave it out")
            if not any(part.episodes is None or part.episodes > 0 for part in parts):
                raise InputError(f"source {source.name} holds no episode; check its path and split, or leave it out")
            if isinstance(getattr(source, "skipped", None), SkippedEpisodes):
                # A copy, so that the caller's source keeps its own list and limit.
                source = copy.copy(source)
                source.skipped = _UnlimitedSkips(0)  # type: ignore[attr-defined]
            self._sources.append((source, weight))
        self._readers: list[_InterleavedReader] = []
        self._position: Position | None = None
        self._empty_epochs = 0  # one after the other
        # An epoch that fits into one block is kept in memory: what it reads, its episodes, and what was skipped.
        self._kept: tuple[list[tuple[int, ...]], list[_CutEpisode], dict[str, str]] | None = None

    def filling(self, position: Position) -> Generator[int, None, ShuffleBlock]:
        """Fill the block that begins at `position`; fastest if the last block ended there.

        Yields:
            The bytes read so far, before each episode that is read. One block at a time may be filled.

        Returns:
            The block.

        Raises:
            InputError: more whole epochs of this stream than allowed give no window.
        """
        self._open_readers(position)
        plan = self._coverage()
        if self._kept is not None and position.block == 0 and self._kept[0] == plan:
            # The whole epoch fits into one block and was read before: use the same episodes in another order. They are
            # held already, so they add no bytes.
            _, cuts, skipped = self._kept
            held = [dataclasses.replace(cut, size=0) for cut in cuts]
            return self._shuffled(held, skipped, begin=position, end=Position(position.epoch + 1, 0))
        cuts, skipped = yield from self._fill(position)
        if any(reader.left() for reader in self._readers):
            places = tuple((reader.chunk, reader.used) for reader in self._readers)
            windows = position.windows + sum(len(cut.start) for cut in cuts)
            end = Position(position.epoch, position.block + 1, places, windows)
            self._kept = None
        else:
            end = Position(position.epoch + 1, 0)
            self._kept = (plan, cuts, skipped) if position.block == 0 and cuts else None
            self._empty_epochs = 0 if cuts or position.windows else self._empty_epochs + 1
            # One of several streams may get held-out or short episodes alone, and others in the next epoch.
            if self._empty_epochs > self._most_empty_epochs:
                names = ", ".join(source.name for source, _ in self._sources)
                why = f"; left out: {next(iter(skipped.values()))}" if skipped else ""
                raise InputError(
                    f"shard {self._rank} of {self._world_size} finds no clip in epoch {position.epoch} of {names}: "
                    f"episodes are too few, or too short for {self._options}{why}; use fewer shards "
                    "(data.stream_shards), other data, a higher target_hz or a shorter gap_seconds"
                )
        self._position = end
        return self._shuffled(cuts, skipped, begin=position, end=end)

    def close(self) -> None:
        """Close all open files."""
        for reader in self._readers:
            reader.close()
        self._position = None

    def _open_readers(self, position: Position) -> None:
        """Put the interleaved readers where a block begins; they are kept if they are there already."""
        if position == self._position and position.block:
            self._position = None
            return
        self.close()
        # Every (rank, reader) pair reads its own share of a source.
        shards = self._world_size * self._readers_per_source
        self._readers = [
            _InterleavedReader(
                number,
                epoch_chunks(
                    self.parts[number],
                    seed=(self._seed, 0, number),
                    epoch=position.epoch,
                    weight=weight,
                    shard=self._rank * self._readers_per_source + index,
                    shards=shards,
                ),
            )
            for number, (_, weight) in enumerate(self._sources)
            for index in range(self._readers_per_source)
        ]
        # Continue in the middle of an epoch: each reader skips the chunks and episodes that it has used.
        for index, (chunk, used) in enumerate(position.readers):
            reader = self._readers[index]
            self._readers[index] = _InterleavedReader(reader.source, reader.chunks, chunk, used)

    def _coverage(self) -> list[tuple[int, ...]]:
        """Return what this epoch reads as (source, part, start, stop), independent of how it is cut into chunks."""
        segments = sorted(
            (reader.source, chunk.part, chunk.start, -1 if chunk.stop is None else chunk.stop)
            for reader in self._readers
            for chunk in reader.chunks
        )
        # Chunks that follow each other in a part become one segment.
        merged: list[tuple[int, ...]] = []
        for source, part, start, stop in segments:
            follows = merged and merged[-1][:2] == (source, part) and merged[-1][3] == start
            merged.append((source, part, merged.pop()[2] if follows else start, stop))
        return merged

    def _fill(self, position: Position) -> Generator[int, None, tuple[list[_CutEpisode], dict[str, str]]]:
        """Read episodes until the block is full or the epoch ends; return them, and what was skipped."""
        rng = np.random.default_rng([self._seed, 1, position.epoch, self._rank, position.block])
        found: dict[tuple[int, ...], _CutEpisode] = {}
        skipped: dict[str, str] = {}
        size = 0
        while size < self._block_bytes and (total := sum(reader.left() for reader in self._readers)):
            yield size
            # Sample a reader with probability proportional to the episodes that it has left.
            ends = itertools.accumulate(reader.left() for reader in self._readers)
            sampled = int(rng.integers(total))
            index = next(index for index, end in enumerate(ends) if sampled < end)
            reader = self._readers[index]
            chunk = reader.chunk
            read = self._read(reader, skipped)
            if read is not None and (self._keep is None or self._keep(read[1])):
                cut = _CutEpisode.of(read[1], self._options)
                # Too short an episode gives no window and is dropped.
                if len(cut.start):
                    size += cut.size
                    found[reader.source, reader.chunks[chunk].part, read[0], index, chunk] = cut
        # In file order, so that a block does not depend on the order in which its episodes were sampled.
        return [found[key] for key in sorted(found)], skipped

    def _read(self, reader: _InterleavedReader, skipped: dict[str, str]) -> tuple[int, Episode] | None:
        """Return the next usable episode of a reader with its number in the part; None if the part gives no more."""
        source = self._sources[reader.source][0]
        chunk = reader.chunks[reader.chunk]
        part = self.parts[reader.source][chunk.part]
        where = f"{source.name}, {part.name}, episode"
        source_skips = getattr(source, "skipped", None)
        # The second attempt begins behind damage that the first one found.
        for attempt in range(2):
            episode, why = reader.next_episode(source)
            for reason in source_skips.take() if isinstance(source_skips, _UnlimitedSkips) else ():
                # An episode behind the chunk is reported by the reader of the next chunk.
                if chunk.stop is None or reader.used < len(chunk):
                    skipped[f"{where} {chunk.start + reader.used}"] = reason
                reader.used += 1
            number = chunk.start + reader.used
            if (chunk.stop is None and not why and episode is None) or (
                chunk.stop is not None and number >= chunk.stop
            ):
                break  # the end, or the first episode of another shard
            if episode is not None and len(episode) and episode.hz > 0:
                reader.advance(1)
                return number, episode
            if episode is not None:
                why = f"{source.name}, episode {episode.episode_id}: {len(episode)} images at {episode.hz} Hz"
                skipped[f"{where} {number}"] = f"{why}; expected at least one, a rate > 0"
                reader.advance(1)
                return None
            if attempt:
                skipped[f"{where} {number}"] = f"{where} {number} and the rest of this part are left out"
                break
            promised = f"{where} {number} is missing: the part ends here, {part.episodes} episodes were promised"
            skipped[f"{where} {number}"] = why or promised
            # Open the file again behind the damaged episode.
            reader.close()
            if not reader.advance(1):
                return None
        reader.finish()
        return None

    def _shuffled(
        self, cuts: list[_CutEpisode], skipped: dict[str, str], *, begin: Position, end: Position
    ) -> ShuffleBlock:
        """Return a block with all windows of some episodes in random order."""
        # The empty array keeps dtype and axes if there is no episode.
        start = np.concatenate([np.zeros(0, np.int64), *(cut.start for cut in cuts)])
        owner = np.repeat(np.arange(len(cuts)), [len(cut.start) for cut in cuts])
        order = np.random.default_rng([self._seed, 2, begin.epoch, self._rank, begin.block]).permutation(len(start))
        return ShuffleBlock(
            begin,
            end,
            episodes=[cut.episode for cut in cuts],
            owner=owner[order],
            start=start[order],
            sizes=[cut.size for cut in cuts],
            skipped=skipped,
        )
