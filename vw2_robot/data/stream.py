"""Training clips straight from data sets of any size: read, shuffled, decoded and batched on the way, nothing cached.

Use it where the frame cache would be too large; `ClipSampler` over a `FrameCache` is the other way to the same clips,
with the same pixels. Sources are whatever implements `EpisodeSource` (RLDS, LeRobot, CALVIN, video folders), each with
a weight that multiplies its size.

    stream = ClipStream([(source, 1.0)], StreamOptions(WindowOptions(num_frames=9, gap_seconds=0.6), height=64,
    width=64), seed=0) batch = stream.batch(32)

The order of clips is a pure function of (seed, epoch, rank) for given sources and options; the number of decoding
threads changes nothing. In an epoch every window of a source with weight 1 comes exactly once over all ranks. Epochs
follow each other without end, each rank at its own pace.

`state` is the position after the last batch as a few JSON values; after `restore` the same clips follow as if nothing
had happened. To get there the block in which the position lies is read again (at most half of `shuffle_bytes`).

Memory: `shuffle_bytes` of compressed images (see `vw2_robot.data.blocks`), `prefetch` decoded clips, one batch. JPEG
is decoded by Pillow in threads, not processes: the decoder works without the interpreter's lock, so that two threads do
the work of 1.7 (64 pixels) to 1.9 (256 pixels), nothing is copied between processes, and TensorFlow is loaded once.

An image that cannot be decoded takes the clips that need it out of the sequence. Such images and damaged files are
named in the log and counted, each once; one more than `max_skipped` stops the run, behind the last good clip.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .blocks import Position, Reader, ShuffleBlock, WindowOptions
from .clips import Augmentation, augment, clip_offsets, padded_frames, windows_at
from .episodes import Episode, EpisodeSource
from .frame_cache import Aspect
from .images import ImageError, read_clip
from .read_ahead import ReadAhead

# B batch · T frames · M latent steps · H, W pixels
_LOG = logging.getLogger(__name__)
_TASK = 4  # clips that a thread takes at a time
_BULK = 64  # windows that are worked out at a time


@dataclass(frozen=True)
class StreamOptions:
    """What clips look like and how much memory they may take."""

    windows: WindowOptions
    height: int
    width: int
    aspect: Aspect = "stretch"
    shuffle_bytes: int = 256 * 2**20
    """compressed images held for shuffling, both blocks together"""
    lanes: int = 2
    """files of each source that are read side by side; part of what decides the order"""
    max_skipped: int = 10
    """images and files that are named and left out before the run stops, on each rank"""
    draft: bool = False
    """decode JPEG at a fraction of its size where that is enough: faster, other pixels than the frame cache"""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("height", "width", "shuffle_bytes", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1, found {getattr(self, name)}")
        if self.max_skipped < 0:
            raise ValueError(f"stream.max_skipped must not be negative, found {self.max_skipped}")


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """pixels uint8 [B, T, H, W, 3]; valid bool [B, M]; start and epoch int64 [B]; the rest one entry a clip."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    start: NDArray[np.int64]
    epoch: NDArray[np.int64]
    source: tuple[str, ...]
    episode_id: tuple[str, ...]
    instruction: tuple[str, ...]
    hz: tuple[float, ...]


@dataclass(eq=False, slots=True)
class _Window:
    """One clip to come: which frames, its place in the order, and the position of the stream after it."""

    episode: Episode
    start: int
    frames: list[int]
    valid: NDArray[np.bool_]
    block: Position
    number: int
    after: tuple[Position, int]


@dataclass(frozen=True)
class _Bad:
    where: str
    why: str


class ClipStream:
    """See the top of this file.

    Args:
        sources: each with its weight.
        options: what clips look like.
        seed: not negative.
        rank: of this process.
        world_size: how many ranks share the data.
        threads: that decode; with 0 everything happens in the caller's thread, when a batch is asked for.
        prefetch: clips that are decoded ahead.
        keep: which episodes are used; all if None. Must give the same answer each time.

    Raises:
        InputError: nothing to read, or settings that exclude each other.
    """

    def __init__(
        self,
        sources: Sequence[tuple[EpisodeSource, float]],
        options: StreamOptions,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        prefetch: int = 32,
        keep: Callable[[Episode], bool] | None = None,
    ) -> None:
        if not sources or not 0 <= rank < world_size or seed < 0 or threads < 0:
            raise InputError(
                f"a stream needs a source (found {len(sources)}), rank {rank} below world_size {world_size}, a seed "
                f"({seed}) and threads ({threads}) that are not negative"
            )
        cut = options.windows
        self.options, self._seed, self._rank, self._ahead = options, seed, rank, prefetch if threads else 0
        self._reader = Reader(
            sources,
            cut,
            seed=seed,
            rank=rank,
            world_size=world_size,
            lanes=options.lanes,
            block_bytes=max(1, options.shuffle_bytes // 2),
            keep=keep,
        )
        self._made_with = self._describe(sources, world_size)
        self._shape = (padded_frames(cut.num_frames, cut.temporal_stride), options.height, options.width, 3)
        self._spare: deque[NDArray[np.uint8]] = deque(maxlen=prefetch + _TASK)  # clips to be overwritten
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._read_ahead = ThreadPoolExecutor(1, thread_name_prefix="read") if threads else None
        self.bad: dict[str, str] = {}
        """what was left out so far: where -> why"""
        self._failed: tuple[int, InputError] | None = None
        """the epoch that cannot be finished, and why"""
        self._position: tuple[Position, int]
        """a block, and how many of its windows are taken"""
        self._begin(Position(0, 0), 0)

    # ------------------------------------------------------------------------------------------------------ batches

    def batch(self, batch_size: int) -> StreamBatch:
        """Return the next clips of this rank.

        Raises:
            InputError: too many bad images and files, or an epoch without a clip.
        """
        return self._collect(itertools.islice(self._clips(), batch_size), batch_size)

    def epoch(self, batch_size: int) -> Iterator[StreamBatch]:
        """Yield the rest of the present epoch; the last batch may be smaller."""
        self._fill_pipeline()
        present = self._pending[0][0].block.epoch if self._pending else self._position[0].epoch
        clips = self._clips(epoch=present)
        while len((batch := self._collect(itertools.islice(clips, batch_size), batch_size)).start):
            yield batch

    def _collect(self, clips: Iterator[tuple[_Window, NDArray[np.uint8]]], batch_size: int) -> StreamBatch:
        batch = np.empty((batch_size, *self._shape), np.uint8)
        windows: list[_Window] = []
        for window, pixels in clips:
            batch[len(windows)] = pixels
            windows.append(window)
            self._spare.append(pixels)
        steps = (self._shape[0] - 1) // self.options.windows.temporal_stride
        episodes = [window.episode for window in windows]
        return StreamBatch(
            pixels=batch[: len(windows)],
            valid=np.array([window.valid for window in windows], np.bool_).reshape(len(windows), steps),
            start=np.array([window.start for window in windows], np.int64),
            epoch=np.array([window.block.epoch for window in windows], np.int64),
            source=tuple(episode.source for episode in episodes),
            episode_id=tuple(episode.episode_id for episode in episodes),
            instruction=tuple(episode.instruction for episode in episodes),
            hz=tuple(episode.hz for episode in episodes),
        )

    def _clips(self, *, epoch: int | None = None) -> Iterator[tuple[_Window, NDArray[np.uint8]]]:
        """Take clips off the front of the pipeline, in order; up to the end of `epoch` if given."""
        while True:
            self._fill_pipeline()
            if self._failed is not None and not self._pending:
                if epoch is not None and epoch < self._failed[0]:
                    return
                raise self._failed[1]
            window, result = self._pending[0]
            if epoch is not None and epoch < window.block.epoch:
                return
            self._pending.popleft()
            made = result()
            self._position = window.after
            if isinstance(made, np.ndarray):
                yield window, made
                continue
            try:
                self._note(made.where, made.why)
            except InputError as error:
                self._failed = (window.block.epoch, error)
                self._pending.clear()

    # ----------------------------------------------------------------------------------------------------- position

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch, as JSON values."""
        begin, taken = self._position
        return {"made_with": self._made_with, "block": dataclasses.asdict(begin), "taken": taken, "bad": dict(self.bad)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` gave, also in another process or with another number of threads.

        Raises:
            InputError: the state belongs to other data, options, seed or number of ranks.
        """
        found = state["made_with"]
        differing = [key for key, value in self._made_with.items() if found.get(key) != value]
        if differing:
            pairs = ", ".join(f"{key}: {found.get(key)!r} then, {self._made_with[key]!r} now" for key in differing)
            raise InputError(f"the position of the clip stream was stored for another stream ({pairs})")
        block = {**state["block"], "lanes": tuple((chunk, used) for chunk, used in state["block"]["lanes"])}
        self.bad = dict(state["bad"])
        self._blocks.close()
        self._begin(Position(**block), int(state["taken"]))

    def close(self) -> None:
        """Stop the threads and let go of all files."""
        self._blocks.close()
        for pool in (self._read_ahead, self._decoders):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        self._pending.clear()
        self._reader.close()

    def __enter__(self) -> ClipStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self, sources: Sequence[tuple[EpisodeSource, float]], world_size: int) -> dict[str, Any]:
        """Return everything that decides the order of clips."""
        parts = (repr([(part.name, part.episodes) for part in parts]).encode() for parts in self._reader.parts)
        names = [
            [source.name, weight, hashlib.sha256(listing).hexdigest()[:16]]
            for (source, weight), listing in zip(sources, parts, strict=True)
        ]
        return {
            **dataclasses.asdict(self.options.windows),
            "shuffle_bytes": self.options.shuffle_bytes,
            "lanes": self.options.lanes,
            "seed": self._seed,
            "rank": self._rank,
            "world_size": world_size,
            "sources": names,
        }

    # ----------------------------------------------------------------------------------------------------- pipeline

    def _begin(self, position: Position, taken: int) -> None:
        self._pending: deque[tuple[_Window, Callable[[], NDArray[np.uint8] | _Bad]]] = deque()
        self._position = (position, taken)
        self._failed, self._reading = None, position.epoch
        self._blocks = ReadAhead(self._reader, position, limit=self.options.shuffle_bytes, pool=self._read_ahead)
        self._windows = self._sequence(taken)

    def _fill_pipeline(self) -> None:
        """Hand windows to the decoders; an error on the way waits until the clips before it are used up."""
        while self._failed is None and len(self._pending) <= self._ahead:
            windows: list[_Window] = []
            try:
                windows.extend(itertools.islice(self._windows, _TASK if self._decoders is not None else 1))
            except InputError as error:
                self._failed = (self._reading, error)
            if self._decoders is None:
                self._pending += [(window, partial(self._decode, window)) for window in windows]
            elif windows:
                task = self._decoders.submit(lambda some: [self._decode(window) for window in some], windows)
                self._pending += [(window, partial(_nth, task, number)) for number, window in enumerate(windows)]

    def _sequence(self, taken: int) -> Iterator[_Window]:
        """Yield windows for ever, block after block."""
        while True:
            block = self._blocks.take()
            for where, why in block.bad.items():
                self._note(where, why)
            yield from _windows_of(block, taken, self.options.windows, self._blocks.let_go)
            self._reading, taken = block.end.epoch, 0

    def _decode(self, window: _Window) -> NDArray[np.uint8] | _Bad:
        options, episode = self.options, window.episode
        try:
            pixels = self._spare.pop()
        except IndexError:
            pixels = np.empty(self._shape, np.uint8)
        try:
            read_clip(episode, window.frames, pixels, aspect=options.aspect, draft=options.draft)
        except ImageError as error:
            return _Bad(f"{episode.source}, episode {episode.episode_id}, frame {error.frame}", str(error))
        if options.augmentation != Augmentation():
            key = [self._seed, 3, window.block.epoch, self._rank, window.block.block, window.number]
            augment(pixels, options.augmentation, np.random.default_rng(key))
        return pixels

    def _note(self, where: str, why: str) -> None:
        if where in self.bad:
            return
        self.bad[where] = why
        if len(self.bad) > self.options.max_skipped:
            raise InputError(
                f"too many bad images and files: {len(self.bad)} where {self.options.max_skipped} were allowed; the "
                f"last: {why}"
            )
        _LOG.warning("left out: %s", why)


def _nth(task: Future[list[NDArray[np.uint8] | _Bad]], number: int) -> NDArray[np.uint8] | _Bad:
    return task.result()[number]


def _windows_of(
    block: ShuffleBlock, taken: int, cut: WindowOptions, let_go: Callable[[int], None]
) -> Iterator[_Window]:
    """Yield the windows of a block from number `taken` on; an episode is let go with its last window."""
    rates = sorted({episode.hz for episode in block.episodes})
    table = np.array(
        [
            clip_offsets(
                cut.num_frames,
                temporal_stride=cut.temporal_stride,
                hz=hz,
                target_hz=cut.target_hz,
                gap_seconds=cut.gap_seconds,
            )
            for hz in rates
        ]
    )
    length = np.array([len(episode) for episode in block.episodes])
    rate = np.array([rates.index(episode.hz) for episode in block.episodes])
    left = np.bincount(block.owner[taken:], minlength=len(block.episodes)).tolist()
    episodes: list[Episode | None] = [
        episode if count else None for episode, count in zip(block.episodes, left, strict=True)
    ]
    block.episodes.clear()
    for size, count in zip(block.sizes, left, strict=True):
        if not count:
            let_go(size)
    total = len(block.owner)
    for begin in range(taken, total, _BULK):
        owners = block.owner[begin : begin + _BULK]
        bulk = windows_at(block.start[begin : begin + _BULK], length[owners], table[rate[owners]], cut.temporal_stride)
        rows = zip(owners.tolist(), bulk.start.tolist(), bulk.frame_ids.tolist(), bulk.valid, strict=True)
        for number, (owner, start, frames, valid) in enumerate(rows, begin):
            episode = episodes[owner]
            assert episode is not None
            left[owner] -= 1
            if not left[owner]:
                episodes[owner] = None
                let_go(block.sizes[owner])
            after = (block.end, 0) if number + 1 == total else (block.begin, number + 1)
            yield _Window(episode, start, frames, valid, block.begin, number, after)
