"""One video file, read: what it is, and its pictures with their times.

The ground under every source whose pictures are films (`video_folder`, `lerobot`). PyAV is imported here and nowhere
else, when a function is called. A file is decoded from front to back, with one thread (sources are read in parallel
already), from the key frame before the wanted time on; a picture that nobody asks for is decoded but never converted.

A damaged file is an error that names it: decoding is strict, and a file that ends before its own header says is
damaged too. Nothing is patched up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require

from .episodes import encode_jpeg

PIECE_FRAMES = 512
"""Longest episode that is held in memory; what is longer is cut into several."""
LONGEST_GAP_S = 60.0
"""A film that stands still for longer, by its own times, is taken for damaged."""
_HIGHEST_HZ = 1000.0
_ADVICE = "copy or encode the file again, or leave it out"


@dataclass(frozen=True)
class VideoFacts:
    """What a file's header says; `frames` and `seconds` are None where it does not."""

    hz: float | None
    frames: int | None
    seconds: float | None
    height: int
    width: int
    codec: str


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A decoded frame: `time` in seconds since the beginning of the film; converted when `picture` is called."""

    time: float
    _frame: Any

    def picture(self) -> NDArray[np.uint8]:
        """Return the frame as uint8 [H, W, 3] RGB, upright."""
        image: NDArray[np.uint8] = self._frame.to_ndarray(format="rgb24")
        quarter_turns = round((self._frame.rotation or 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image

    def jpeg(self) -> bytes:
        """Return the same as JPEG of quality 95: in this form the pictures of a whole episode can be held."""
        return encode_jpeg(self.picture())


def _open(av: ModuleType, path: Path) -> Any:
    """Open a film whatever is written in its title; PyAV reads such text by itself from 19 on."""
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(str(path), **options)


def describe_video(path: Path) -> VideoFacts:
    """Read the header of a video file.

    Raises:
        InputError: there is no such file, or it is no readable video.
    """
    av = _av()
    try:
        with _open(av, path) as container:
            return _facts(_film_of(container, path))
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def timed_frames(path: Path, *, start_s: float = 0.0) -> Iterator[TimedFrame]:
    """Yield the frames of a file from the key frame at or before `start_s` on, in order of time.

    Raises:
        InputError: the file is missing, is no video, is damaged, or ends before its header says.
    """
    av = _av()
    last = None
    try:
        with _open(av, path) as container:
            film = _film_of(container, path)
            film.codec_context.thread_count = 1
            film.codec_context.options = {"err_detect": "explode"}
            facts, begin = _facts(film), float((film.start_time or 0) * film.time_base)
            if start_s > 0:
                container.seek(int((start_s + begin) / film.time_base), stream=film, backward=True)
            for frame in container.decode(film):
                if frame.time is None or frame.is_corrupt:
                    raise InputError(f"{path} is damaged after {last or 0.0:.2f} s; {_ADVICE}")
                last = float(frame.time) - begin
                yield TimedFrame(last, frame)
    except av.FFmpegError as error:
        if last is None:
            raise _unreadable(path, error) from error
        raise InputError(f"{path} is damaged after {last:.2f} s ({_reason(error)}); {_ADVICE}") from error
    _check_end(path, facts, last)


def frames_at_rate(path: Path, hz: float) -> Iterator[TimedFrame]:
    """Yield one frame for every 1/hz seconds: the frame itself where the file has that rate.

    Films of a varying rate (screens, telephones) come out even: a frame that was left out because nothing changed is
    given again, one too many is dropped.
    """
    due = 0
    before: TimedFrame | None = None
    for frame in timed_frames(path):
        slot = int(frame.time * hz + 0.5)
        if before is not None:
            if frame.time - before.time > LONGEST_GAP_S:
                raise InputError(
                    f"{path} jumps from {before.time:.2f} s to {frame.time:.2f} s: its times are damaged; {_ADVICE}"
                )
            for _ in range(due, slot):
                yield before
        if slot >= due or before is None:
            yield frame
        before, due = frame, max(due, slot + 1)


def jpegs_at(path: Path, stretches: Iterable[tuple[float, int]], hz: float) -> Iterator[tuple[bytes, ...]]:
    """Yield the pictures of several stretches of one file, as JPEG, in one pass over the file.

    Args:
        path: the file.
        stretches: start in seconds and number of pictures of each; starts do not decrease.
        hz: pictures a second. Picture i of a stretch is the frame nearest to start + i/hz, within half a picture.

    Raises:
        InputError: a stretch has no frame where one should be.
    """
    frames: Iterator[TimedFrame] | None = None
    waiting: TimedFrame | None = None
    for start, count in stretches:
        if frames is None:
            frames = timed_frames(path, start_s=max(0.0, start - 0.5 / hz))
            waiting = next(frames, None)
        found: dict[int, tuple[float, bytes]] = {}  # number of the picture -> how far off it is, and itself
        while waiting is not None:
            position = (waiting.time - start) * hz
            index = math.floor(position + 0.5)
            if index >= count:
                break
            off = abs(position - index)
            if index >= 0 and (index not in found or off < found[index][0]):
                found[index] = (off, waiting.jpeg())
            waiting = next(frames, None)
        missing = sorted(set(range(count)) - set(found))
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of {count} pictures from {start:.3f} s on are not there, the first is number"
                f" {missing[0]}, at {start + missing[0] / hz:.3f} s; {_ADVICE}"
            )
        yield tuple(found[index][1] for index in range(count))


def _av() -> ModuleType:
    return require("av", extra="video")


def _film_of(container: Any, path: Path) -> Any:
    """The first stream of pictures that is not a cover."""
    for stream in container.streams.video:
        if stream.disposition & type(stream.disposition).attached_pic:
            continue
        if stream.codec_context is None:
            raise InputError(f"{path} cannot be read as a video (its encoding is not known); {_ADVICE}")
        return stream
    raise InputError(f"{path} holds no film (streams: {', '.join(s.type for s in container.streams) or 'none'})")


def _facts(film: Any) -> VideoFacts:
    context = film.codec_context
    hz = float(film.average_rate or film.guessed_rate or 0.0)
    return VideoFacts(
        hz=hz if 0.0 < hz <= _HIGHEST_HZ else None,
        frames=film.frames or None,
        seconds=_seconds(film),
        height=context.height,
        width=context.width,
        codec=context.codec.canonical_name,
    )


def _seconds(film: Any) -> float | None:
    if film.duration is not None:
        return float(film.duration * film.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", film.metadata.get("DURATION", "").strip())  # Matroska and WebM
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else None


def _check_end(path: Path, facts: VideoFacts, last: float | None) -> None:
    """Compare where decoding ended with where the header says that the film ends."""
    if last is None:
        raise InputError(f"{path} holds no frame; {_ADVICE}")
    slack = 2.5 / facts.hz if facts.hz else 0.5
    if facts.seconds is not None and last < facts.seconds - slack:
        raise InputError(f"{path} ends at {last:.2f} s, its header says {facts.seconds:.2f} s: it is cut; {_ADVICE}")


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read as a video ({_reason(error)}); {_ADVICE}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
