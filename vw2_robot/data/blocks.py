"""Episodes read from many sources, shuffled in blocks of a stated number of bytes, images still compressed.

A block is filled with episodes until it holds half of `shuffle_bytes`; then all its windows are put in random order.
While one block is being used, the next ones are read, as far as all that is held stays within `shuffle_bytes` (plus one
episode). Counted are the compressed bytes of all images that some window shows, once each, however many windows
overlap; other images are dropped at once, and an episode is let go with its last window. An epoch ends with its own,
possibly small, block.

Which source comes next is drawn with the number of episodes that it still has in this epoch, so a mixture keeps its
proportions to the end. Within a source, `lanes` files are open at the same time.

A `Position` says where a block begins, in a few numbers; a `Reader` fills equal blocks for equal positions, whatever
was read before. That is what makes an exact resume cheap: no buffer is stored.

A damaged part or an empty episode is reported in `ShuffleBlock.bad` and left out. After damage the part is tried once
more behind it; if that fails too, the rest of the part is left out. Episodes that a source leaves out by itself are
counted here too, instead of against the source's own limit, which would be reached some epochs later.
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

# n windows of a block · S sources · L lanes


@dataclass(frozen=True)
class WindowOptions:
    """How episodes are cut; see `vw2_robot.data.clips`."""

    num_frames: int
    temporal_stride: int = 4
    target_hz: Rate | None = None
    gap_seconds: Rate | None = None
    window_stride: int = 1
    """clip frames between the starts of two windows"""

    def __post_init__(self) -> None:
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
    """Where a block begins: for each lane the number of its chunk and the episodes used of it."""

    epoch: int
    block: int
    lanes: tuple[tuple[int, int], ...] = ()
    windows: int = 0
    """made so far in this epoch"""


@dataclass(eq=False)
class ShuffleBlock:
    """Episodes and their n windows in random order: `owner` [n] is the episode's number here, `start` [n] its frame."""

    begin: Position
    end: Position
    episodes: list[Episode]
    owner: NDArray[np.int64]
    start: NDArray[np.int64]
    sizes: list[int]
    """bytes of each episode"""
    bad: dict[str, str]
    """what was left out: where -> why"""


@dataclass
class _Lane:
    """One open file of one source, and the chunks that it goes through."""

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

    def advance(self, episodes: int) -> bool:
        """Go on by some episodes of the present chunk; return whether it has more."""
        self.used += episodes
        present = self.chunks[self.chunk]
        if present.stop is not None and self.used >= len(present):
            self.finish()
            return False
        return True

    def finish(self) -> None:
        """Leave the present chunk."""
        self.close()
        self.chunk, self.used = self.chunk + 1, 0
        self._after -= sum(map(len, self.chunks[self.chunk : self.chunk + 1]))

    def close(self) -> None:
        """Let go of the open file."""
        close = getattr(self.stream, "close", None)
        if close is not None:
            close()
        self.stream = None


@dataclass(frozen=True, eq=False)
class _Cut:
    episode: Episode
    start: NDArray[np.int64]
    size: int


class Reader:
    """Blocks of one rank.

    Args:
        sources: each with its weight, see `vw2_robot.data.shards`.
        options: how episodes are cut into windows.
        seed: with epoch and rank the only source of chance.
        rank: of this process.
        world_size: how many ranks share the data.
        lanes: files of one source that are open at the same time.
        block_bytes: size of a block.
        keep: which episodes are used; all if None.

    Raises:
        InputError: a source without episodes, or a weight that is not positive.
    """

    def __init__(
        self,
        sources: Sequence[tuple[EpisodeSource, float]],
        options: WindowOptions,
        *,
        seed: int,
        rank: int,
        world_size: int,
        lanes: int,
        block_bytes: int,
        keep: Callable[[Episode], bool] | None = None,
    ) -> None:
        self._sources = [(_own(source), weight) for source, weight in sources]
        self._options, self._seed, self._rank = options, seed, rank
        self._world_size, self._lanes_each, self._block_bytes, self._keep = world_size, lanes, block_bytes, keep
        self.parts = [list(source.parts()) for source, _ in sources]
        for (source, weight), parts in zip(sources, self.parts, strict=True):
            if not weight > 0:
                raise InputError(f"source {source.name}: the weight must be positive, found {weight}; or leave it out")
            if not any(part.episodes is None or part.episodes > 0 for part in parts):
                raise InputError(f"source {source.name} holds no episode; check its path and split, or leave it out")
        self._lanes: list[_Lane] = []
        self._position: Position | None = None
        self._kept: tuple[list[tuple[int, ...]], list[_Cut], dict[str, str]] | None = None

    def filling(self, position: Position) -> Generator[int, None, ShuffleBlock]:
        """Fill the block that begins at `position`, fastest if it is where the last one ended.

        Yields the bytes read so far, before each episode that is read, and returns the block. One block at a time.

        Raises:
            InputError: a whole epoch of this rank gives no window.
        """
        self._go_to(position)
        plan = self._coverage()
        if self._kept is not None and position.block == 0 and self._kept[0] == plan:
            # All of the epoch fits into one block and was read before.
            _, cuts, bad = self._kept
            held = [dataclasses.replace(cut, size=0) for cut in cuts]
            return self._shuffled(held, bad, begin=position, end=Position(position.epoch + 1, 0))
        cuts, bad = yield from self._fill(position)
        if any(lane.left() for lane in self._lanes):
            places = tuple((lane.chunk, lane.used) for lane in self._lanes)
            windows = position.windows + sum(len(cut.start) for cut in cuts)
            end = Position(position.epoch, position.block + 1, places, windows)
            self._kept = None
        else:
            end = Position(position.epoch + 1, 0)
            self._kept = (plan, cuts, bad) if position.block == 0 else None
            if not cuts and not position.windows:
                raise self._empty(position.epoch, bad)
        self._position = end
        return self._shuffled(cuts, bad, begin=position, end=end)

    def close(self) -> None:
        """Let go of all open files."""
        for lane in self._lanes:
            lane.close()
        self._position = None

    def _go_to(self, position: Position) -> None:
        if position == self._position and position.block:
            self._position = None
            return
        self.close()
        shards = self._world_size * self._lanes_each
        self._lanes = [
            _Lane(
                number,
                epoch_chunks(
                    self.parts[number],
                    seed=(self._seed, 0, number),
                    epoch=position.epoch,
                    weight=weight,
                    shard=self._rank * self._lanes_each + lane,
                    shards=shards,
                ),
            )
            for number, (_, weight) in enumerate(self._sources)
            for lane in range(self._lanes_each)
        ]
        for index, (chunk, used) in enumerate(position.lanes):
            lane = self._lanes[index]
            self._lanes[index] = _Lane(lane.source, lane.chunks, chunk, used)

    def _coverage(self) -> list[tuple[int, ...]]:
        """Return what this epoch reads as (source, part, start, stop), however it is cut into chunks."""
        pieces = sorted(
            (lane.source, chunk.part, chunk.start, -1 if chunk.stop is None else chunk.stop)
            for lane in self._lanes
            for chunk in lane.chunks
        )
        merged: list[tuple[int, ...]] = []
        for source, part, start, stop in pieces:
            follows = merged and merged[-1][:2] == (source, part) and merged[-1][3] == start
            merged.append((source, part, merged.pop()[2] if follows else start, stop))
        return merged

    def _fill(self, position: Position) -> Generator[int, None, tuple[list[_Cut], dict[str, str]]]:
        rng = np.random.default_rng([self._seed, 1, position.epoch, self._rank, position.block])
        found: dict[tuple[int, ...], _Cut] = {}
        bad: dict[str, str] = {}
        size = 0
        while size < self._block_bytes and (total := sum(lane.left() for lane in self._lanes)):
            yield size
            ends = itertools.accumulate(lane.left() for lane in self._lanes)
            drawn = int(rng.integers(total))
            index = next(index for index, end in enumerate(ends) if drawn < end)
            lane, chunk = self._lanes[index], self._lanes[index].chunk
            read = self._read(lane, bad)
            if read is not None and (self._keep is None or self._keep(read[1])):
                cut = self._cut(read[1])
                if len(cut.start):
                    size += cut.size
                    found[lane.source, lane.chunks[chunk].part, read[0], index, chunk] = cut
        # In file order, so that a block does not depend on how its episodes were drawn.
        return [found[key] for key in sorted(found)], bad

    def _read(self, lane: _Lane, bad: dict[str, str]) -> tuple[int, Episode] | None:
        """Return the next usable episode of a lane with its number in the part; None if the part gives no more."""
        source, chunk = self._sources[lane.source][0], lane.chunks[lane.chunk]
        part = self.parts[lane.source][chunk.part]
        where = f"{source.name}, {part.name}, episode"
        for attempt in range(2):
            episode, why = self._next(lane)
            for reason in _left_out(source):
                if chunk.stop is None or lane.used < len(chunk):
                    bad[f"{where} {chunk.start + lane.used}"] = reason
                lane.used += 1
            number = chunk.start + lane.used
            if (chunk.stop is None and not why and episode is None) or (
                chunk.stop is not None and number >= chunk.stop
            ):
                break  # the end, or the first episode of another shard
            if episode is not None and len(episode) and episode.hz > 0:
                lane.advance(1)
                return number, episode
            if episode is not None:
                why = f"{source.name}, episode {episode.episode_id}: {len(episode)} images at {episode.hz} Hz"
                bad[f"{where} {number}"] = f"{why}; expected at least one, a rate > 0"
                lane.advance(1)
                return None
            if attempt:
                bad[f"{where} {number}"] = f"{where} {number} and the rest of this part are left out"
                break
            promised = f"{where} {number} is missing: the part ends here, {part.episodes} episodes were promised"
            bad[f"{where} {number}"] = why or promised
            lane.close()
            if not lane.advance(1):
                return None
        lane.finish()
        return None

    def _next(self, lane: _Lane) -> tuple[Episode | None, str]:
        """Return the next episode; without one, what is damaged, or nothing at the end of the part."""
        chunk = lane.chunks[lane.chunk]
        try:
            if lane.stream is None:
                lane.stream = self._sources[lane.source][0].read(chunk.part, start=chunk.start + lane.used)
            return next(lane.stream), ""
        except StopIteration:
            return None, ""
        except InputError as error:
            return None, str(error)

    def _cut(self, episode: Episode) -> _Cut:
        """Return an episode with its windows, rid of images that none of them shows."""
        options = self._options
        windows = make_windows(
            len(episode),
            num_frames=options.num_frames,
            cache_stride=options.window_stride,
            hz=episode.hz,
            temporal_stride=options.temporal_stride,
            target_hz=options.target_hz,
            gap_seconds=options.gap_seconds,
        )
        shown = np.zeros(len(episode), bool)
        shown[windows.frame_ids] = True
        images = tuple(image if use else b"" for image, use in zip(episode.images, shown.tolist(), strict=True))
        size = sum(image.nbytes if isinstance(image, np.ndarray) else len(image) for image in images)
        return _Cut(dataclasses.replace(episode, images=images), windows.start, size)

    def _shuffled(self, cuts: list[_Cut], bad: dict[str, str], *, begin: Position, end: Position) -> ShuffleBlock:
        start = np.concatenate([np.zeros(0, np.int64), *(cut.start for cut in cuts)])
        owner = np.repeat(np.arange(len(cuts)), [len(cut.start) for cut in cuts])
        order = np.random.default_rng([self._seed, 2, begin.epoch, self._rank, begin.block]).permutation(len(start))
        episodes, sizes = [cut.episode for cut in cuts], [cut.size for cut in cuts]
        return ShuffleBlock(begin, end, episodes, owner[order], start[order], sizes, bad)

    def _empty(self, epoch: int, bad: dict[str, str]) -> InputError:
        names = ", ".join(source.name for source, _ in self._sources)
        why = f"; left out: {next(iter(bad.values()))}" if bad else ""
        return InputError(
            f"rank {self._rank} of {self._world_size} finds no clip in epoch {epoch} of {names}: episodes are too few, "
            f"or too short for {self._options}{why}; use fewer ranks, other data, a higher target_hz or a shorter "
            f"gap_seconds"
        )


class _LeftOut(SkippedEpisodes):
    """What a source leaves out by itself; counted by the stream, each place once, not anew in each epoch."""

    def add(self, error: InputError, *, count: int = 1) -> None:
        """Take them down."""
        self.messages += [str(error)] * count


def _own(source: EpisodeSource) -> EpisodeSource:
    """Return the source, a copy with its own list if it leaves out episodes by itself."""
    if isinstance(getattr(source, "bad", None), SkippedEpisodes):
        source = copy.copy(source)
        source.bad = _LeftOut(0)  # type: ignore[attr-defined]
    return source


def _left_out(source: EpisodeSource) -> list[str]:
    """Return what was left out since the last call: one number of the part has passed for each."""
    found = getattr(source, "bad", None)
    if not isinstance(found, _LeftOut):
        return []
    messages, found.messages = found.messages, []
    return messages
