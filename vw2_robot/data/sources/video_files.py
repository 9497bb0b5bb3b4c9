"""Reader of video files: properties of a file, and its frames with their times.

The sources with videos use it (`video_folder`, `lerobot_dataset`). Only this file imports PyAV, when a function is
called. A file is decoded from front to back, with one thread (several sources are read in parallel already), from the
key frame before the wanted time on; frames that are not used are decoded but not converted to RGB.

A damaged file is an error that names it: decoding is strict, and a file that ends before the time in its own header is
damaged too. Nothing is repaired. The frame rate in a header is not reliable: for recordings of screens and browsers it
is 1000, or the mean of a varying rate. It is measured at the beginning of the video.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require

from ..episodes import MAX_PIXELS, encode_jpeg

SEGMENT_FRAMES = 512
"""Longest episode that is held in memory; longer ones are cut into several."""
LONGEST_GAP_SECONDS = 60.0
"""A video with a longer time between two frames counts as damaged."""
HIGHEST_HZ = 1000.0
_RATE_PACKETS = 500
"""Number of packets that the rate is measured on; they are not decoded."""
_ADVICE = "copy or encode the file again, or leave it out"


@dataclass(frozen=True)
class VideoFacts:
    """Properties of a video file; `num_frames` and `seconds` are None if the header lacks them. `hz` is measured."""

    hz: float | None
    num_frames: int | None
    seconds: float | None
    height: int
    width: int
    codec: str


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A decoded frame, `time` seconds after the beginning of the video; converted to RGB when `image` is called."""

    time: float
    _frame: Any

    def image(self) -> NDArray[np.uint8]:
        """Return the frame as uint8 [H, W, 3] RGB, upright."""
        image: NDArray[np.uint8] = self._frame.to_ndarray(format="rgb24")
        # Phones store how the camera was held instead of rotating the pixels.
        rotations = round((self._frame.rotation or 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(image, rotations)) if rotations else image

    def jpeg(self) -> bytes:
        """Return the frame as JPEG of quality 95, small enough to hold the images of a whole episode."""
        return encode_jpeg(self.image())


def _open(av: ModuleType, path: Path) -> Any:
    """Open a video, also one with invalid text in its metadata; PyAV handles that by itself from version 19 on."""
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(str(path), **options)


def describe_video(path: Path) -> VideoFacts:
    """Return the properties of a video file, from its header and the times of its first frames.

    Raises:
        InputError: there is no such file, or it is no readable video.
    """
    av = require("av", extra="video")
    try:
        with _open(av, path) as container:
            video_stream = _video_stream_of(container, path)
            context = video_stream.codec_context
            return VideoFacts(
                hz=_measured_hz(container, video_stream),
                num_frames=video_stream.frames or None,
                seconds=_seconds(video_stream),
                height=context.height,
                width=context.width,
                codec=context.codec.canonical_name,
            )
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def timed_frames(path: Path, *, start_seconds: float = 0.0) -> Iterator[TimedFrame]:
    """Yield the frames of a file from the key frame at or before `start_seconds` on, in order of time.

    Raises:
        InputError: the file is missing, is no video, is damaged, or ends before the time in its header.
    """
    av = require("av", extra="video")
    times: list[float] = []
    try:
        with _open(av, path) as container:
            video_stream = _video_stream_of(container, path)
            video_stream.codec_context.thread_count = 1
            # Without "explode" FFmpeg conceals damage: it fills in gray or repeated blocks.
            video_stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
            seconds = _seconds(video_stream)
            begin = _begin(video_stream)
            if start_seconds > 0:
                container.seek(
                    int((start_seconds + begin) / video_stream.time_base), stream=video_stream, backward=True
                )
            for frame in container.decode(video_stream):
                if frame.time is None or frame.is_corrupt:
                    raise InputError(f"{path} is damaged after {times[-1] if times else 0:.2f} s; {_ADVICE}")
                times.append(float(frame.time) - begin)
                yield TimedFrame(times[-1], frame)
    except av.FFmpegError as error:
        if not times:
            raise _unreadable(path, error) from error
        raise InputError(
            f"{path} is damaged after {times[-1]:.2f} s ({getattr(error, 'strerror', None) or error}); {_ADVICE}"
        ) from error
    if not times:
        raise InputError(f"{path} holds no frame; {_ADVICE}")
    # A file that ends too early was probably cut. The time in the header may be a little late, and without a time only
    # the size of the file can show it.
    slack = 2.5 * (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.5
    # The last frame may last for seconds, and some headers hold the length of the sound only: so the size decides.
    if (seconds is None or times[-1] < seconds - slack) and _is_short(path):
        stated = "" if seconds is None else f", its header says {seconds:.2f} s"
        raise InputError(f"{path} ends at {times[-1]:.2f} s{stated}: it is cut; {_ADVICE}")


def frames_at_rate(path: Path, hz: float) -> Iterator[TimedFrame]:
    """Yield one frame for every 1/hz seconds.

    Videos of a varying rate (screens, phones) get a constant rate: a frame is repeated where the next one is late, and
    a frame too many is dropped.

    Args:
        path: the file.
        hz: frames per second.

    Raises:
        InputError: the file is damaged.
    """
    due = 0  # number of the next frame at the constant rate
    before: TimedFrame | None = None
    for frame in timed_frames(path):
        slot = int(frame.time * hz + 0.5)
        if before is not None:
            if frame.time - before.time > LONGEST_GAP_SECONDS:
                raise InputError(
                    f"{path} jumps from {before.time:.2f} s to {frame.time:.2f} s: its times are damaged; {_ADVICE}"
                )
            # The frame before stays visible until this one.
            for _ in range(due, slot):
                yield before
        if slot >= due or before is None:
            yield frame
        before = frame
        due = max(due, slot + 1)


def jpegs_at(path: Path, segments: Iterable[tuple[float, int]], hz: float) -> Iterator[tuple[bytes, ...]]:
    """Yield the images of several segments of one file, as JPEG, in one pass over the file.

    Args:
        path: the file.
        segments: start in seconds and number of images of each; starts do not decrease.
        hz: images per second. Image i of a segment is the frame nearest to start + i/hz, within half an interval.

    Raises:
        InputError: a segment has no frame where one should be.
    """
    frames: Iterator[TimedFrame] | None = None
    waiting: TimedFrame | None = None
    # One decoder for all segments: starts do not decrease, so each segment continues where the last one ended.
    for start, count in segments:
        if frames is None:
            frames = timed_frames(path, start_seconds=max(0.0, start - 0.5 / hz))
            waiting = next(frames, None)
        found: dict[int, tuple[float, bytes]] = {}  # number of the image -> its distance, and the image
        # Several frames may be near one image, such as in a video of a higher rate: the nearest one is used.
        while waiting is not None:
            position = (waiting.time - start) * hz
            index = math.floor(position + 0.5)
            if index >= count:
                break
            distance = abs(position - index)
            if index >= 0 and (index not in found or distance < found[index][0]):
                found[index] = (distance, waiting.jpeg())
            waiting = next(frames, None)
        missing = sorted(set(range(count)) - set(found))
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of {count} images from {start:.3f} s on are not there, the first is number"
                f" {missing[0]}, at {start + missing[0] / hz:.3f} s; {_ADVICE}"
            )
        yield tuple(found[index][1] for index in range(count))


def _video_stream_of(container: Any, path: Path) -> Any:
    """Return the first video stream that is not a cover image.

    Raises:
        InputError: there is none, or it cannot be decoded.
    """
    for stream in container.streams.video:
        if stream.disposition & type(stream.disposition).attached_pic:
            continue
        if stream.codec_context is None:
            raise InputError(f"{path} cannot be read as a video (its encoding is not known); {_ADVICE}")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise InputError(f"{path} has images of {width} x {height}, at most {MAX_PIXELS} pixels are read")
        return stream
    raise InputError(f"{path} holds no video (streams: {', '.join(s.type for s in container.streams) or 'none'})")


def _begin(video_stream: Any) -> float:
    """Return the time of the first frame, in seconds on the clock of the file."""
    return float((video_stream.start_time or 0) * video_stream.time_base)


def _seconds(video_stream: Any) -> float | None:
    """Return the length of the video in its header; None if it has none."""
    tags = (value for key, value in video_stream.metadata.items() if key.startswith("DURATION"))  # Matroska and WebM
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", next(tags, "").strip())
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - _begin(video_stream)
    return None if video_stream.duration is None else float(video_stream.duration * video_stream.time_base)


def _is_short(path: Path) -> bool:
    """Return whether a file ends before its outermost part: a box of mp4, the segment of Matroska, the RIFF of avi."""
    size = path.stat().st_size
    position = 0
    with path.open("rb") as file:
        kind = file.read(4)
        if kind == b"RIFF":
            return 8 + int.from_bytes(file.read(4), "little") > size
        if kind == b"\x1a\x45\xdf\xa3":  # EBML, the header of Matroska and WebM
            file.seek(_ebml_number(file) or 0, os.SEEK_CUR)
            segment = _ebml_number(file) if file.read(4) == b"\x18\x53\x80\x67" else None
            return segment is not None and file.tell() + segment > size
        # Boxes of mp4 follow each other: 4 bytes of length, or 1 and then 8 bytes of length.
        while position < size:
            file.seek(position)
            length = int.from_bytes(file.read(4), "big")
            if length == 1:
                file.seek(4, os.SEEK_CUR)
                length = int.from_bytes(file.read(8), "big")
            if length == 0:  # to the end of the file
                return False
            position += max(8, length)
    return position > size


def _ebml_number(file: BinaryIO) -> int | None:
    """Read a variable-length number of EBML; None if the writer did not know it."""
    first = file.read(1) or b"\xff"
    # The number of leading zeros of the first byte is the number of bytes that follow; all bits set means unknown.
    width = 9 - first[0].bit_length()
    number = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if number == (1 << 7 * width) - 1 else number


def _measured_hz(container: Any, video_stream: Any) -> float | None:
    """Return the rate of most of the first frames; the rate in the header if it is within 2 % of that."""
    packets = itertools.islice(container.demux(video_stream), _RATE_PACKETS)
    gaps = np.diff(sorted({float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None}))
    stated = [
        float(rate) for rate in (video_stream.average_rate, video_stream.guessed_rate) if rate and rate < HIGHEST_HZ
    ]
    if not len(gaps):
        return stated[0] if stated else None
    # The mean of the usual gaps: the median alone would have the rounding of a single time, and pauses would spoil the
    # mean of all.
    usual = float(np.median(gaps))
    measured = 1 / float(np.mean(gaps[np.abs(gaps - usual) <= usual / 2]))
    # Times may be rounded to milliseconds, so a rate in the header that is close is more exact.
    nearest = min(stated, key=lambda hz: abs(hz - measured), default=measured)
    hz = nearest if abs(nearest - measured) < 0.02 * measured else round(measured, 3)
    return hz if 0 < hz <= HIGHEST_HZ else None


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read as a video ({getattr(error, 'strerror', None) or error}); {_ADVICE}")
