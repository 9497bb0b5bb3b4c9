"""Replay windows: the interface between processes that read data sets and processes that train.

`ingest` processes read `EpisodeSource`s and fill a replay with windows of compressed frames; trainer ranks sample
windows and decode them, on one machine or many. Two engines implement the same interface:

    memory   `memory_replay.MemoryReplay`: inside the trainer's process, bounded in bytes. The default.
    reverb   `reverb_reader`, `reverb_writer`: a Reverb server on this or another machine, used over the network.

and two modes:

    queue    every window is delivered exactly once in an epoch, in random order among those present; a full queue
             makes the writer wait.
    uniform  windows are sampled with replacement; a full pool drops the oldest.

Every window has an identity that depends on the data and the ingest plan alone (`segment`, `number`). A writer that
was killed repeats at most its last episode, under the same identities, and `Delivered` drops what a rank already got.
Store `state` of a replay in the trainer's checkpoint.

A frame that lies beyond the end of an episode is stored as b"" and replaced by the last real one when it is read; a
latent step is valid if none of its frames is such a frame. Only `decode` and `decode_window` decode images.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError

from ..blocks import WindowOptions
from ..clips import clip_offsets, make_windows
from ..episodes import Episode
from ..images import Aspect, Decode, read_clip
from ..stream import StreamBatch

# B windows · T frames · M latent steps · s temporal stride · H, W pixels
Mode = Literal["queue", "uniform"]


class ReplayTimeout(InputError):
    """No window arrived, or none could be stored, within the time limit; the message says what to check."""


@dataclass(frozen=True, eq=False)
class ReplayWindow:
    """T compressed frames of one episode; those beyond the end of the episode are b""."""

    source: str
    episode_id: str
    instruction: str
    hz: float
    """of the episode, as in `Episode.hz`"""
    start: int
    epoch: int
    segment: str
    """the segment of the data set that it was read from; unique in the plan of all ingest processes"""
    number: int
    """index of the window in its segment, from 0 on without a gap"""
    frames: tuple[bytes, ...]
    target_hz: float | None = None
    """how it was cut, as in `WindowOptions`"""
    gap_seconds: float | None = None
    temporal_stride: int = 4

    @property
    def key(self) -> tuple[str, int]:
        """Segment and number, which identify the window."""
        return self.segment, self.number

    def valid(self, temporal_stride: int) -> NDArray[np.bool_]:
        """Return which latent steps [M] lie inside the episode."""
        # Frames after a missing one are missing too, so the last frame of a step decides.
        return np.array([frame != b"" for frame in self.frames[temporal_stride::temporal_stride]], np.bool_)

    def header(self) -> bytes:
        """Return everything but the frames, as JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "frames"}
        return json.dumps(values, ensure_ascii=False).encode()


def window_of(header: bytes, frames: Sequence[bytes]) -> ReplayWindow:
    """Return the window with this header, which may be of an earlier release, and these frames."""
    return ReplayWindow(**with_new_keys(json.loads(header)), frames=tuple(frames))


# --------------------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True, eq=False)
class CutEpisode:
    """An episode to be stored: images as bytes, its windows, and the frame offsets [T] that all windows share."""

    images: tuple[bytes, ...]
    offsets: tuple[int, ...]
    windows: tuple[ReplayWindow, ...]


WindowFrames = Callable[[NDArray[np.int64], tuple[int, ...]], NDArray[np.int64]]
"""start [n] and offsets [T] of windows -> ids [n, T] of their frames"""


def window_frames(start: NDArray[np.int64], offsets: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the ids [n, T] of the frames of windows, also of those beyond the end of an episode."""
    return start[:, None] + np.array(offsets, np.int64)


def cut_episode(
    episode: Episode,
    options: WindowOptions,
    *,
    epoch: int,
    segment: str,
    number: int,
    frames_of: WindowFrames = window_frames,
) -> CutEpisode:
    """Cut an episode into the windows of `clips.make_windows`.

    Args:
        episode: images may be arrays; they are stored as lossless PNG then.
        options: length, stride and rate of the windows.
        epoch: in which the episode was read.
        segment: see `ReplayWindow.segment`.
        number: of the first window in its segment.
        frames_of: computes which frames the windows show; all choices give the same result.
    """
    found = make_windows(
        len(episode),
        num_frames=options.num_frames,
        cache_stride=options.window_stride,
        hz=episode.hz,
        temporal_stride=options.temporal_stride,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    # Offsets are equal for all windows of an episode: they depend on its frame rate only.
    offsets = clip_offsets(
        options.num_frames,
        hz=episode.hz,
        temporal_stride=options.temporal_stride,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    shown = frames_of(found.start, tuple(offsets.tolist()))
    # A header travels with its frames as bytes, so arrays are encoded; an episode without windows needs no images.
    images: list[bytes] = []
    for image in episode.images if len(found.start) else ():
        if not isinstance(image, bytes):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG", compress_level=1)  # lossless: equal pixels on every path
            image = buffer.getvalue()
        images.append(image)
    windows = tuple(
        ReplayWindow(
            source=episode.source,
            episode_id=episode.episode_id,
            instruction=episode.instruction,
            hz=episode.hz,
            start=start,
            epoch=epoch,
            segment=segment,
            number=number + index,
            frames=tuple(images[frame] if frame < len(images) else b"" for frame in frames),
            target_hz=options.target_hz,
            gap_seconds=options.gap_seconds,
            temporal_stride=options.temporal_stride,
        )
        for index, (start, frames) in enumerate(zip(found.start.tolist(), shown.tolist(), strict=True))
    )
    return CutEpisode(tuple(images), tuple(offsets.tolist()), windows)


def padded_steps(cut: CutEpisode) -> Iterator[tuple[bytes, ReplayWindow | None]]:
    """Yield (image, window whose last frame this is) step by step; the image is b"" beyond the end of the episode.

    With this padding every window is the same pattern over the steps before its last one: frame i of the window is the
    image `offsets[-1] - offsets[i]` steps earlier.
    """
    # Windows of one episode have different starts, so at most one ends at each step.
    ends = {window.start + cut.offsets[-1]: window for window in cut.windows}
    for index in range(max([len(cut.images), *(end + 1 for end in ends)])):
        yield (cut.images[index] if index < len(cut.images) else b""), ends.get(index)


def share_of(window: ReplayWindow, shares: int) -> int:
    """Return which of `shares` ranks gets a window: evenly spread, and equal each time the window is sent."""
    # Not Python's `hash`, which gives a text another number in every process.
    return (zlib.crc32(window.segment.encode()) + window.number) % shares


# -------------------------------------------------------------------------------------------------------- decoding


def decode(
    windows: Sequence[ReplayWindow],
    *,
    temporal_stride: int,
    height: int,
    width: int,
    aspect: Aspect = "stretch",
    decode: Decode = "scaled",
) -> StreamBatch:
    """Decode windows into a training batch with the same pixels as `ClipStream.batch`.

    Args:
        windows: at least one; all have the same number of frames.
        temporal_stride: frames of a latent step.
        height: pixels.
        width: pixels.
        aspect: see `resize_frame`.
        decode: see `images`.

    Raises:
        ImageError: a frame is no image; names source, episode and frame of the window.
    """
    # Each window writes into its part of the batch: no copy is needed afterwards.
    pixels = np.empty((len(windows), len(windows[0].frames), height, width, 3), np.uint8)
    for clip, window in zip(pixels, windows, strict=True):
        decode_window(window, clip, aspect=aspect, decode=decode)
    return batch_of(windows, pixels, temporal_stride=temporal_stride)


def decode_window(
    window: ReplayWindow, out: NDArray[np.uint8], *, aspect: Aspect = "stretch", decode: Decode = "scaled"
) -> None:
    """Write the frames of one window to `out`; otherwise as `decode`.

    Args:
        window: T compressed frames; b"" is replaced by the frame before it.
        out: uint8 [T, H, W, 3], written in place; its H and W are the size in pixels.
        aspect: see `resize_frame`.
        decode: see `images`.

    Raises:
        ImageError: a frame is no image; names source, episode and frame of the window.
    """
    # Messages count frames from the start of the window, so the name has to tell it.
    name = f"{window.episode_id} from frame {window.start}"
    # A missing or repeated frame is taken from the one before it, so that it is decoded once.
    shown = list(range(len(window.frames)))
    for index in shown[1:]:
        if window.frames[index] in (b"", window.frames[index - 1]):
            shown[index] = shown[index - 1]
    read_clip(Episode(window.source, name, "", window.hz, window.frames), shown, out, aspect=aspect, decode=decode)


def batch_of(windows: Sequence[ReplayWindow], pixels: NDArray[np.uint8], *, temporal_stride: int) -> StreamBatch:
    """Return the training batch of windows and their pixels.

    Args:
        windows: B windows, at least one; all have the same number of frames.
        pixels: uint8 [B, T, H, W, 3], the decoded frames in the order of `windows`; not copied.
        temporal_stride: frames of a latent step.

    Returns:
        The pixels, the valid latent steps [B, M], and where each window comes from.
    """
    return StreamBatch(
        pixels=pixels,
        valid=np.stack([window.valid(temporal_stride) for window in windows]),
        start=np.array([window.start for window in windows], np.int64),
        epoch=np.array([window.epoch for window in windows], np.int64),
        source=tuple(window.source for window in windows),
        episode_id=tuple(window.episode_id for window in windows),
        instruction=tuple(window.instruction for window in windows),
        hz=tuple(window.hz for window in windows),
    )


# ---------------------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Progress:
    """How far an ingest process has come: where in which segment of which epoch it continues."""

    epoch: int = 0
    segment: int = 0
    """index in the order of segments of this epoch"""
    episode: int | None = None
    """number in its part of the next episode; None at the beginning of a segment"""
    windows: int = 0
    """windows cut so far in this segment"""
    done: bool = False

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        """Return the progress that was stored as a dictionary, perhaps by an earlier release."""
        return cls(**with_new_keys(dict(stored)))


class ReplayWriter(Protocol):
    """The side of a replay that an ingest process writes to."""

    def progress(self, plan: str) -> Progress:
        """Return where to continue.

        Raises:
            InputError: the stored windows were written by another plan.
            ReplayTimeout: the replay does not answer.
        """

    def add(self, cut: CutEpisode, after: Progress) -> bool:
        """Store all windows of an episode, wait until they are stored, then store `after`.

        Returns:
            Whether `after` is now the progress in the replay. False: the replay was restored to an earlier state
            meanwhile; call `progress` and continue from there.

        Raises:
            ReplayTimeout: the replay stayed full, or did not answer.
        """

    def finish(self, after: Progress) -> bool:
        """Store that no more windows follow; otherwise as `add`."""

    def close(self) -> None:
        """Disconnect from the replay."""


class Replay(Protocol):
    """The side of a replay that one trainer rank reads from."""

    def sample(self, count: int, *, timeout_seconds: float) -> list[ReplayWindow]:
        """Return `count` windows; fewer, or none, only at the end of the data of a queue.

        Raises:
            ReplayTimeout: fewer windows arrived in time. They are kept for the next call.
        """

    def size(self) -> int:
        """Return how many windows are stored for this rank."""

    @property
    def finished(self) -> bool:
        """Whether a queue has delivered to this rank everything that all ingest processes sent; False for a pool."""

    def state(self) -> dict[str, Any]:
        """Return what was delivered to this rank, as JSON values for the trainer's checkpoint.

        A memory replay continues exactly from a `checkpoint` that was written right before this.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the deliveries of an earlier `state`."""

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """Store the windows on disk; return where. Do this before the trainer's own checkpoint.

        Raises:
            ReplayTimeout: it took longer.
        """

    def close(self) -> None:
        """Disconnect from the replay."""


class Delivered:
    """The set of windows that were delivered: for each segment all numbers below a watermark, and a few above it."""

    def __init__(self, shares: int = 1) -> None:
        self.shares = shares
        self.count = 0
        self._watermarks: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        segment, number = key
        serial = number // self.shares  # one number in `shares` belongs to this rank
        return serial < self._watermarks.get(segment, 0) or serial in self._above.get(segment, ())

    def add(self, key: tuple[str, int]) -> None:
        """Add a window that is not in the set."""
        assert key not in self
        self.count += 1
        segment, number = key
        watermark = self._watermarks.get(segment, 0)
        above = self._above.setdefault(segment, set())
        above.add(number // self.shares)
        # Raise the watermark over all numbers that are delivered without a gap, so that the set stays small.
        while watermark in above:
            above.remove(watermark)
            watermark += 1
        self._watermarks[segment] = watermark
        if not above:
            del self._above[segment]

    def state(self) -> dict[str, Any]:
        """Return JSON values."""
        above = {segment: sorted(numbers) for segment, numbers in self._above.items()}
        return {"shares": self.shares, "marks": dict(self._watermarks), "above": above}

    @classmethod
    def of(cls, state: Mapping[str, Any], *, shares: int) -> Delivered:
        """Return the set that `state` described.

        Raises:
            InputError: it was stored with another number of ranks.
        """
        if state["shares"] != shares:
            raise InputError(
                f"the position in the replay was stored by one of {state['shares']} ranks, this replay serves "
                f"{shares}; continue with the old number of ranks, or start the epoch anew"
            )
        delivered = cls(shares)
        delivered._watermarks = dict(state["marks"])
        delivered._above = {segment: set(numbers) for segment, numbers in state["above"].items()}
        delivered.count = sum(delivered._watermarks.values()) + sum(map(len, delivered._above.values()))
        return delivered
