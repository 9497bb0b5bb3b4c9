"""Replay: windows of compressed frames between those who read data sets and those who train, on one machine or many.

`ingest` processes read `EpisodeSource`s and fill a replay; trainer ranks draw windows from it and decode them. Two
engines keep the same contract:

    memory   `memory_replay.MemoryReplay`: inside the trainer's process, bounded in bytes. The default.
    reverb   `reverb_replay`: a Reverb server on this or another machine, written and read over the network.

and two modes:

    queue    every window is delivered exactly once in an epoch, in random order among those present; a full queue
             makes the writer wait.
    uniform  windows are drawn with replacement; a full pool drops the oldest.

Every window has an identity that depends on the data and the ingest plan alone (`stretch`, `number`). A writer that
was killed repeats at most the episode that it was at, under the same identities, and `Delivered` drops what a rank has
had. `state` of a replay belongs into the trainer's checkpoint.

A frame that lies beyond the end of an episode is stored as b"" and filled with the last real one when it is read; a
latent step is valid if none of its frames is such a frame. Nothing is decoded here but by `decode`.
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

from vw2_robot.errors import InputError

from ..blocks import WindowOptions
from ..clips import clip_offsets, make_windows
from ..episodes import Episode
from ..frame_cache import Aspect
from ..images import read_clip
from ..stream import StreamBatch

# B windows · T frames · M latent steps · s temporal stride · H, W pixels
Mode = Literal["queue", "uniform"]


class ReplayTimeout(InputError):
    """Nothing came, or nothing could be stored, within the time allowed; the message says what to look at."""


@dataclass(frozen=True, eq=False)
class ReplayWindow:
    """T compressed frames of one episode. `frames` that lie beyond the end of the episode are b""."""

    source: str
    episode_id: str
    instruction: str
    hz: float
    """of the episode, as in `Episode.hz`"""
    start: int
    epoch: int
    stretch: str
    """the run of episodes that it was read from; unique in the plan of all ingest processes"""
    number: int
    """counts the windows of a stretch, from 0 on without a gap"""
    frames: tuple[bytes, ...]
    target_hz: float | None = None
    """how it was cut, as in `WindowOptions`"""
    gap_seconds: float | None = None
    temporal_stride: int = 4

    @property
    def key(self) -> tuple[str, int]:
        """Its identity."""
        return self.stretch, self.number

    def valid(self, temporal_stride: int) -> NDArray[np.bool_]:
        """Return which latent steps [M] lie inside the episode."""
        # Once beyond the end, always beyond it: the last frame of a step decides.
        return np.array([frame != b"" for frame in self.frames[temporal_stride::temporal_stride]], np.bool_)

    def header(self) -> bytes:
        """Return everything but the frames, as JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "frames"}
        return json.dumps(values, ensure_ascii=False).encode()


def window_of(header: bytes, frames: Sequence[bytes]) -> ReplayWindow:
    """Return the window with this header and these frames."""
    return ReplayWindow(**json.loads(header), frames=tuple(frames))


# --------------------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True, eq=False)
class CutEpisode:
    """An episode as a replay takes it: images as bytes, windows, and the offsets [T] that all of them have."""

    images: tuple[bytes, ...]
    offsets: tuple[int, ...]
    windows: tuple[ReplayWindow, ...]


WindowFrames = Callable[[NDArray[np.int64], tuple[int, ...]], NDArray[np.int64]]
"""start [n] and offsets [T] of windows -> the frames [n, T] that they show"""


def window_frames(start: NDArray[np.int64], offsets: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the frames of windows; those beyond the end of an episode are counted on."""
    return start[:, None] + np.array(offsets, np.int64)


def cut_episode(
    episode: Episode,
    options: WindowOptions,
    *,
    epoch: int,
    stretch: str,
    number: int,
    frames_of: WindowFrames = window_frames,
) -> CutEpisode:
    """Cut an episode into the windows of `clips.make_windows`, the first of which gets `number`."""
    found = make_windows(
        len(episode),
        num_frames=options.num_frames,
        cache_stride=options.window_stride,
        hz=episode.hz,
        temporal_stride=options.temporal_stride,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    offsets = clip_offsets(
        options.num_frames,
        hz=episode.hz,
        temporal_stride=options.temporal_stride,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    shown = frames_of(found.start, tuple(offsets.tolist()))
    images = tuple(_as_bytes(image) for image in episode.images) if len(found.start) else ()
    windows = tuple(
        ReplayWindow(
            source=episode.source,
            episode_id=episode.episode_id,
            instruction=episode.instruction,
            hz=episode.hz,
            start=start,
            epoch=epoch,
            stretch=stretch,
            number=number + index,
            frames=tuple(images[frame] if frame < len(images) else b"" for frame in frames),
            target_hz=options.target_hz,
            gap_seconds=options.gap_seconds,
            temporal_stride=options.temporal_stride,
        )
        for index, (start, frames) in enumerate(zip(found.start.tolist(), shown.tolist(), strict=True))
    )
    return CutEpisode(images, tuple(offsets.tolist()), windows)


def _as_bytes(image: bytes | NDArray[np.uint8]) -> bytes:
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)  # lossless: equal pixels on every path
    return buffer.getvalue()


def padded_steps(cut: CutEpisode) -> Iterator[tuple[bytes, ReplayWindow | None]]:
    """Yield (image, the window whose last frame this is) step by step, b"" beyond the end of the episode.

    So every window, padded or not, is the same pattern over the steps before its last one: frame i of the window is
    the image `offsets[-1] - offsets[i]` steps earlier.
    """
    ends = {window.start + cut.offsets[-1]: window for window in cut.windows}
    for index in range(max([len(cut.images), *(end + 1 for end in ends)])):
        yield (cut.images[index] if index < len(cut.images) else b""), ends.get(index)


def share_of(window: ReplayWindow, shares: int) -> int:
    """Return which of `shares` ranks a window goes to: even, and the same whenever it is sent."""
    return (zlib.crc32(window.stretch.encode()) + window.number) % shares


# -------------------------------------------------------------------------------------------------------- decoding


def decode(
    windows: Sequence[ReplayWindow], *, temporal_stride: int, height: int, width: int, aspect: Aspect = "stretch"
) -> StreamBatch:
    """Decode windows into a training batch, of the same kind and with the same pixels as `ClipStream.batch`.

    Raises:
        ImageError: a frame is no image; names source, episode and frame of the window.
    """
    pixels = np.empty((len(windows), len(windows[0].frames), height, width, 3), np.uint8)
    for clip, window in zip(pixels, windows, strict=True):
        decode_window(window, clip, aspect=aspect)
    return batch_of(windows, pixels, temporal_stride=temporal_stride)


def decode_window(window: ReplayWindow, out: NDArray[np.uint8], *, aspect: Aspect = "stretch") -> None:
    """Write the frames of one window to `out`, uint8 [T, H, W, 3]; otherwise as `decode`."""
    name = f"{window.episode_id} from frame {window.start}"
    shown = list(range(len(window.frames)))
    for index in shown[1:]:
        if window.frames[index] in (b"", window.frames[index - 1]):
            shown[index] = shown[index - 1]
    read_clip(Episode(window.source, name, "", window.hz, window.frames), shown, out, aspect=aspect)


def batch_of(windows: Sequence[ReplayWindow], pixels: NDArray[np.uint8], *, temporal_stride: int) -> StreamBatch:
    """Return the training batch of windows and their pixels, uint8 [B, T, H, W, 3]."""
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
    """Where an ingest process goes on: behind `episodes` of stretch number `turn` of its epoch."""

    epoch: int = 0
    turn: int = 0
    episode: int | None = None
    """number in its part of the next episode; None at the beginning of a stretch"""
    windows: int = 0
    """cut so far in this stretch"""
    done: bool = False


class ReplayWriter(Protocol):
    """What an ingest process does with a replay."""

    def progress(self, plan: str) -> Progress:
        """Return where to go on.

        Raises:
            InputError: what is stored was written by another plan.
            ReplayTimeout: the replay does not answer.
        """

    def add(self, cut: CutEpisode, after: Progress) -> bool:
        """Store all windows of an episode, wait until they are, then store `after`.

        Returns whether that is what now stands in the replay. False: it went back to an earlier state (a restored
        checkpoint); ask for `progress` and go on from there.

        Raises:
            ReplayTimeout: the replay stayed full, or did not answer.
        """

    def finish(self, after: Progress) -> bool:
        """Say that no more windows follow; otherwise as `add`."""

    def close(self) -> None:
        """Let go of the replay."""


class Replay(Protocol):
    """What one trainer rank does with a replay."""

    def sample(self, count: int, *, timeout_seconds: float) -> list[ReplayWindow]:
        """Return `count` windows; fewer, or none, only at the end of the data of a queue.

        Raises:
            ReplayTimeout: not so many came in time. Those that came are kept for the next call.
        """

    def size(self) -> int:
        """Return how many windows are stored for this rank."""

    @property
    def finished(self) -> bool:
        """Whether a queue has delivered to this rank everything that all ingest processes sent. Never in a pool."""

    def state(self) -> dict[str, Any]:
        """Return what was delivered to this rank, as JSON values for the trainer's checkpoint.

        A memory replay goes on exactly where a `checkpoint` right before this was written.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the deliveries of an earlier `state`."""

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """Store the windows on disk; return where. Do this before the trainer's own checkpoint.

        Raises:
            ReplayTimeout: it took longer.
        """

    def close(self) -> None:
        """Let go of the replay."""


class Delivered:
    """Which windows were delivered: for each stretch all numbers of a queue below a mark, and a few above it."""

    def __init__(self, shares: int = 1) -> None:
        self.shares, self.count = shares, 0
        self._marks: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        stretch, serial = key[0], key[1] // self.shares  # one number in `shares` belongs to this rank
        return serial < self._marks.get(stretch, 0) or serial in self._above.get(stretch, ())

    def add(self, key: tuple[str, int]) -> None:
        """Note a delivery that was not noted before."""
        assert key not in self
        self.count += 1
        stretch, mark = key[0], self._marks.get(key[0], 0)
        above = self._above.setdefault(stretch, set())
        above.add(key[1] // self.shares)
        while mark in above:
            above.remove(mark)
            mark += 1
        self._marks[stretch] = mark
        if not above:
            del self._above[stretch]

    def state(self) -> dict[str, Any]:
        """Return JSON values."""
        above = {stretch: sorted(numbers) for stretch, numbers in self._above.items()}
        return {"shares": self.shares, "marks": dict(self._marks), "above": above}

    @classmethod
    def of(cls, state: Mapping[str, Any], *, shares: int) -> Delivered:
        """Return what `state` described.

        Raises:
            InputError: it was stored by another number of ranks.
        """
        if state["shares"] != shares:
            raise InputError(
                f"the position in the replay was stored by one of {state['shares']} ranks, this replay serves "
                f"{shares}; go on with the old number of ranks, or start the epoch anew"
            )
        delivered = cls(shares)
        delivered._marks = dict(state["marks"])
        delivered._above = {stretch: set(numbers) for stretch, numbers in state["above"].items()}
        delivered.count = sum(delivered._marks.values()) + sum(map(len, delivered._above.values()))
        return delivered
