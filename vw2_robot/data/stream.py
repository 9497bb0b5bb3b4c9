"""A stream of training clips from data sets of any size: read, shuffled, decoded and batched without a cache.

Use it where the frame cache would be too large. `ClipSampler` over a `FrameCache` gives the same clips with the same
pixels. A source is anything that implements `EpisodeSource` (RLDS, LeRobot, CALVIN, video folders); its weight
multiplies its size.

    options = StreamOptions(WindowOptions(num_frames=9, gap_seconds=0.6), height=64, width=64)
    stream = ClipStream([(source, 1.0)], options, seed=0)
    batch = stream.batch(32)

The order of clips is a pure function of (seed, epoch, rank) for given sources and options; the number of decoding
threads changes nothing. In an epoch every window of a source with weight 1 comes exactly once over all ranks. Epochs
follow each other without end, each rank at its own pace. `sharded_stream` lets several of these streams, whose ranks
are logical, fill the global batches of a training run with any number of processes.

`state` returns the position after the last batch as a few JSON values; after `restore` the same clips follow. Restoring
reads the block in which the position lies again (at most half of `shuffle_bytes`).

Memory: `shuffle_bytes` of compressed images (see `vw2_robot.data.blocks`), `prefetch` decoded clips, one batch. JPEG is
decoded in threads, not processes: the decoder releases the interpreter's lock, nothing is copied between processes, and
TensorFlow is loaded once.

An image that cannot be decoded removes the clips that need it from the stream. Such images and damaged files are named
in the log and counted, each once; one more than `max_skipped` stops the run after the last readable clip.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError

from .blocks import BlockReader, Position, ShuffleBlock, WindowOptions
from .clips import Augmentation, augment, clip_offsets, padded_frames, windows_at
from .episodes import Episode, EpisodeSource, Part
from .images import Aspect, Decode, ImageError, read_clip
from .read_ahead import ReadAhead

# B batch · T frames · M latent steps · H, W pixels
_LOG = logging.getLogger(__name__)
_CLIPS_PER_TASK = 4  # fewer, larger tasks cost less overhead in the thread pool
_WINDOWS_PER_CALL = 64  # windows computed at a time: numpy's overhead is shared, memory stays small


@dataclass(frozen=True)
class StreamOptions:
    """What clips look like and how much memory they may take."""

    windows: WindowOptions
    height: int
    width: int
    aspect: Aspect = "stretch"
    shuffle_bytes: int = 256 * 2**20
    """compressed images held for shuffling, both blocks together"""
    interleaved_readers: int = 2
    """files of each source that are read at the same time; the order of clips depends on it"""
    max_skipped: int = 10
    """unreadable images and files that each rank skips before the run stops"""
    decode: Decode = "scaled"
    """of JPEG that is much larger than needed, see `images`"""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("height", "width", "shuffle_bytes", "interleaved_readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1, found {getattr(self, name)}")
        if self.max_skipped < 0:
            raise ValueError(f"stream.max_skipped must not be negative, found {self.max_skipped}")


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """pixels uint8 [B, T, H, W, 3]; valid bool [B, M]; start and epoch int64 [B]; the other fields one entry a clip."""

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
    """A clip that is still to be decoded, its place in the order, and the position of the stream after it."""

    episode: Episode
    start: int
    frame_ids: list[int]
    valid: NDArray[np.bool_]
    block: Position
    number: int
    after: tuple[Position, int]


@dataclass(frozen=True)
class _Unreadable:
    where: str
    why: str


@dataclass(frozen=True)
class StreamPools:
    """The threads of one or several streams."""

    decoders: ThreadPoolExecutor
    reader: ThreadPoolExecutor
    """one thread, since the blocks of a stream are read in order"""

    @classmethod
    def of(cls, threads: int) -> StreamPools | None:
        """Return new threads, of which so many decode; None for 0."""
        if not threads:
            return None
        return cls(
            ThreadPoolExecutor(threads, thread_name_prefix="decode"), ThreadPoolExecutor(1, thread_name_prefix="read")
        )

    def close(self) -> None:
        """Stop the threads."""
        for pool in (self.reader, self.decoders):
            pool.shutdown(cancel_futures=True)


def stream_identity(
    sources: Sequence[tuple[EpisodeSource, float]],
    options: StreamOptions,
    *,
    seed: int,
    world_size: int,
    parts: Sequence[Sequence[Part]],
) -> dict[str, Any]:
    """Return everything that the order of clips depends on, apart from the rank.

    Args:
        sources: each with its weight.
        options: of the stream.
        seed: of the stream.
        world_size: how many streams share the data.
        parts: of each source.
    """
    # A hash of the parts: data sets may have thousands of files, and the state should stay small.
    listings = (repr([(part.name, part.episodes) for part in some]).encode() for some in parts)
    return {
        **dataclasses.asdict(options.windows),
        "shuffle_bytes": options.shuffle_bytes,
        "interleaved_readers": options.interleaved_readers,
        "seed": seed,
        "world_size": world_size,
        "sources": [
            [source.name, weight, hashlib.sha256(listing).hexdigest()[:16]]
            for (source, weight), listing in zip(sources, listings, strict=True)
        ],
    }


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare the identity in a stored position with that of the stream that is to continue there.

    Raises:
        InputError: they differ.
    """
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        pairs = ", ".join(f"{key}: {found.get(key)!r} then, {wanted[key]!r} now" for key in differing)
        raise InputError(f"the position of the clip stream was stored for another stream ({pairs})")


class ClipStream:
    """An endless stream of clips; see the top of this file.

    Args:
        sources: each with its weight.
        options: size, length and augmentation of the clips, and memory limits.
        seed: not negative.
        rank: of this stream.
        world_size: how many streams share the data.
        threads: number of decoding threads; with 0 everything runs in the caller's thread, when a batch is requested.
        prefetch: clips that are decoded ahead.
        keep: which episodes are used; all if None. Must give the same answer each time.
        state: position to begin at, as for `restore`; None: at the beginning.
        pools: threads that this stream uses instead of its own, and does not end.
        skipped_elsewhere: places that other streams of this process have left out; they count against `max_skipped`.
        most_empty_epochs: how many epochs without a clip may follow each other.

    Raises:
        InputError: there is nothing to read, or settings exclude each other.
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
        state: Mapping[str, Any] | None = None,
        pools: StreamPools | None = None,
        skipped_elsewhere: Callable[[], Iterable[str]] = tuple,
        most_empty_epochs: int = 0,
    ) -> None:
        if not sources or not 0 <= rank < world_size or seed < 0 or threads < 0:
            raise InputError(
                f"a stream needs a source (found {len(sources)}), rank {rank} below world_size {world_size}, a seed "
                f"({seed}) and threads ({threads}) that are not negative"
            )
        cut = options.windows
        self.options = options
        self._seed = seed
        self._rank = rank
        self._reader = BlockReader(
            sources,
            cut,
            seed=seed,
            rank=rank,
            world_size=world_size,
            interleaved_readers=options.interleaved_readers,
            block_bytes=max(1, options.shuffle_bytes // 2),
            keep=keep,
            most_empty_epochs=most_empty_epochs,
        )
        # Stored with each position, to detect that data or options have changed.
        self._made_with = {
            **stream_identity(sources, options, seed=seed, world_size=world_size, parts=self._reader.parts),
            "rank": rank,
        }
        self._shape = (padded_frames(cut.num_frames, cut.temporal_stride), options.height, options.width, 3)
        self._augments = options.augmentation != Augmentation()
        self._spare: deque[NDArray[np.uint8]] = deque(maxlen=prefetch + _CLIPS_PER_TASK)  # buffers for reuse
        self._started_pools = StreamPools.of(threads) if pools is None else None
        used = pools or self._started_pools
        self._decoders = used.decoders if used is not None else None
        self._read_ahead = used.reader if used is not None else None
        self._ahead = prefetch if used is not None else 0
        self._skipped_elsewhere = skipped_elsewhere
        self.skipped: dict[str, str] = {}
        """images, episodes and parts left out so far: where -> why"""
        self._failed: tuple[int, InputError] | None = None
        """the epoch that cannot be finished, and why"""
        self._position: tuple[Position, int]
        """a block, and how many of its windows are taken"""
        if state is None:
            self._begin(Position(0, 0), 0)
        else:
            self._begin(*self._read_state(state))

    # ------------------------------------------------------------------------------------------------------ batches

    def batch(self, batch_size: int) -> StreamBatch:
        """Return the next clips of this rank.

        Raises:
            InputError: too many unreadable images and files, or an epoch without a clip.
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
        """Copy decoded clips into one batch; it is shorter if there are fewer than `batch_size`."""
        batch = np.empty((batch_size, *self._shape), np.uint8)
        windows: list[_Window] = []
        for window, pixels in clips:
            batch[len(windows)] = pixels
            windows.append(window)
            self._spare.append(pixels)  # copied: the decoders may use the buffer again
        latent_steps = (self._shape[0] - 1) // self.options.windows.temporal_stride
        episodes = [window.episode for window in windows]
        return StreamBatch(
            pixels=batch[: len(windows)],
            valid=np.array([window.valid for window in windows], np.bool_).reshape(len(windows), latent_steps),
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
            # An error is raised only when all clips before it are delivered.
            if self._failed is not None and not self._pending:
                if epoch is not None and epoch < self._failed[0]:
                    return
                raise self._failed[1]
            # A clip of the next epoch stays in the pipeline.
            window, result = self._pending[0]
            if epoch is not None and epoch < window.block.epoch:
                return
            self._pending.popleft()
            made = result()
            # Also after an image that cannot be decoded, so that a restore does not stop at it.
            self._position = window.after
            if isinstance(made, np.ndarray):
                yield window, made
                continue
            try:
                self._skip(made.where, made.why)
            except InputError as error:
                # Nothing behind this clip is delivered: how far decoding was ahead must not matter.
                self._failed = (window.block.epoch, error)
                self._pending.clear()

    # ----------------------------------------------------------------------------------------------------- position

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch, as JSON values."""
        begin, taken = self._position
        return {
            "made_with": self._made_with,
            "block": dataclasses.asdict(begin),
            "taken": taken,
            "skipped": dict(self.skipped),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned, also in another process or with another number of threads.

        Raises:
            InputError: the state belongs to other data, options, seed or number of ranks.
        """
        position, taken = self._read_state(state)
        self._blocks.close()
        self._begin(position, taken)

    def _read_state(self, state: Mapping[str, Any]) -> tuple[Position, int]:
        """Return the block and the windows taken of it, after the state was compared with this stream."""
        state = with_new_keys(dict(state))  # checkpoints of earlier releases
        check_identity(state["made_with"], self._made_with)
        self.skipped = dict(state["skipped"])
        # JSON has lists where a position has tuples.
        readers = tuple((chunk, used) for chunk, used in state["block"]["readers"])
        return Position(**{**state["block"], "readers": readers}), int(state["taken"])

    def close(self) -> None:
        """Close all files and stop the threads, unless they were given."""
        self._blocks.close()
        if self._started_pools is not None:
            self._started_pools.close()
        self._pending.clear()
        self._reader.close()

    def __enter__(self) -> ClipStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------- pipeline

    def _begin(self, position: Position, taken: int) -> None:
        """Start the pipeline at a block, behind the first `taken` of its windows."""
        self._pending: deque[tuple[_Window, Callable[[], NDArray[np.uint8] | _Unreadable]]] = deque()
        self._position = (position, taken)
        self._failed = None
        self._reading = position.epoch
        self._blocks = ReadAhead(self._reader, position, limit=self.options.shuffle_bytes, pool=self._read_ahead)
        self._windows = self._sequence(taken)

    def decode_ahead(self, clips: int) -> None:
        """Let the decoders begin with the next clips, as many as given."""
        if self._decoders is not None:
            self._fill_pipeline(clips)

    def _fill_pipeline(self, clips: int = 0) -> None:
        """Give windows to the decoders. An error of reading is kept until the clips before it are delivered."""
        while self._failed is None and len(self._pending) <= max(self._ahead, clips - 1):
            windows: list[_Window] = []
            try:
                windows.extend(itertools.islice(self._windows, _CLIPS_PER_TASK if self._decoders is not None else 1))
            except InputError as error:
                self._failed = (self._reading, error)
            if self._decoders is None:
                self._pending += [(window, partial(self._decode, window)) for window in windows]
            elif windows:
                task = self._decoders.submit(lambda some: [self._decode(window) for window in some], windows)
                for number, window in enumerate(windows):

                    def result(
                        task: Future[list[NDArray[np.uint8] | _Unreadable]] = task, number: int = number
                    ) -> NDArray[np.uint8] | _Unreadable:
                        return task.result()[number]

                    self._pending.append((window, result))

    def _sequence(self, taken: int) -> Iterator[_Window]:
        """Yield windows without end, block after block."""
        while True:
            block = self._blocks.take()
            # Counted when the block is used, not when it is read ahead: a resumed run counts the same.
            for where, why in block.skipped.items():
                self._skip(where, why)
            yield from _windows_of(block, taken, self.options.windows, self._blocks.release)
            self._reading = block.end.epoch
            taken = 0

    def _decode(self, window: _Window) -> NDArray[np.uint8] | _Unreadable:
        """Return the pixels of a clip; runs in several threads at once."""
        options = self.options
        episode = window.episode
        try:
            pixels = self._spare.pop()  # a used buffer: new ones cost page faults
        except IndexError:
            pixels = np.empty(self._shape, np.uint8)
        try:
            read_clip(episode, window.frame_ids, pixels, aspect=options.aspect, decode=options.decode)
        except ImageError as error:
            return _Unreadable(f"{episode.source}, episode {episode.episode_id}, frame {error.frame}", str(error))
        if self._augments:
            # Keyed by the clip's place, so that the number of threads changes nothing.
            key = [self._seed, 3, window.block.epoch, self._rank, window.block.block, window.number]
            augment(pixels, options.augmentation, np.random.default_rng(key))
        return pixels

    def _skip(self, where: str, why: str) -> None:
        """Count what is left out, each place once.

        Raises:
            InputError: there is more of it than `max_skipped`.
        """
        if where in self.skipped:
            return
        self.skipped[where] = why
        count = len({*self.skipped, *self._skipped_elsewhere()})
        if count > self.options.max_skipped:
            raise InputError(
                f"too many unreadable images and files: {count} where {self.options.max_skipped} were allowed; "
                f"the last: {why}"
            )
        _LOG.warning("left out: %s", why)


def _windows_of(
    block: ShuffleBlock, taken: int, cut: WindowOptions, release: Callable[[int], None]
) -> Iterator[_Window]:
    """Yield the windows of a block from number `taken` on; an episode is released with its last window."""
    # One row of frame offsets for each frame rate in the block.
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
    # How many windows of each episode are still to come. Episodes are held here alone, so that they can be freed.
    left = np.bincount(block.owner[taken:], minlength=len(block.episodes)).tolist()
    episodes: list[Episode | None] = [
        episode if count else None for episode, count in zip(block.episodes, left, strict=True)
    ]
    block.episodes.clear()
    for size, count in zip(block.sizes, left, strict=True):
        if not count:
            release(size)
    total = len(block.owner)
    for begin in range(taken, total, _WINDOWS_PER_CALL):
        some = slice(begin, begin + _WINDOWS_PER_CALL)
        owners = block.owner[some]
        windows = windows_at(block.start[some], length[owners], table[rate[owners]], cut.temporal_stride)
        rows = zip(owners.tolist(), windows.start.tolist(), windows.frame_ids.tolist(), windows.valid, strict=True)
        for number, (owner, start, frame_ids, valid) in enumerate(rows, begin):
            episode = episodes[owner]
            assert episode is not None
            left[owner] -= 1
            if not left[owner]:
                episodes[owner] = None
                release(block.sizes[owner])
            after = (block.end, 0) if number + 1 == total else (block.begin, number + 1)
            yield _Window(episode, start, frame_ids, valid, block.begin, number, after)
