"""Episodes of a robot with images still compressed, the type that every reader yields and every writer takes.

The place in the flow: `sources` (or a simulator) make episodes, `frame_cache` decodes them once for training. An
`Episode` holds what latent pre-training may use (images, instruction, rate); a `Demonstration` adds the actions.
Images are JPEG or PNG bytes as on disk, or uint8 arrays, and are decoded one at a time, so an episode of a few hundred
large frames costs megabytes, not gigabytes. Color and gray JPEG is decoded by libjpeg-turbo without the interpreter's
lock, in half of Pillow's time and to the same pixels; Pillow decodes everything else, and decides what is damaged.

This is not a file format and needs no TensorFlow.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vw2_robot.errors import InputError

_LOG = logging.getLogger(__name__)

MAX_PIXELS = 2**26
"""Largest image that is decoded, 8192 x 8192; a small damaged file can state far more."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # for others Pillow may start external programs such as Ghostscript
# Raised by Pillow for bytes that are no image, a truncated image, a damaged PNG chunk, or an absurd size.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, eq=False)
class Episode:
    """Images in time order at `hz` frames per second, with their instruction.

    `episode_id` is unique within `source`. `instruction` may be empty: such episodes exist in Open-X.
    """

    source: str
    episode_id: str
    instruction: str
    hz: float
    images: tuple[bytes | NDArray[np.uint8], ...]

    def __post_init__(self) -> None:
        """Reject names and instructions that cannot be stored as UTF-8, such as lone surrogates of a damaged text."""
        for text in (self.source, self.episode_id, self.instruction):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{self.source!r}, episode {self.episode_id!r}: {text!r} is no valid text ({error.reason} at "
                    f"character {error.start}); mend or rename it"
                ) from error

    def __len__(self) -> int:
        return len(self.images)

    def decode(
        self, index: int, *, at_least: tuple[int, int] | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return frame `index` as uint8 [H, W, 3] RGB.

        Args:
            index: of the frame.
            at_least: H and W that are needed: a JPEG comes at the smallest of 1/8, 2/8, 3/8 and 4/8 of its size that is
                as large, or at its own size.
            out: a contiguous array that a JPEG of its size is written to, and that is returned then.

        Raises:
            InputError: the frame cannot be decoded; names source, episode and frame.
        """
        image = self.images[index]
        # An array comes from a simulator or a decoder and only has to have the right form.
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise self._unreadable(index, f"an array {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
            return image
        if (pixels := _decode_jpeg(image, at_least, out)) is not None:
            return pixels
        try:
            with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                # Checked before decoding, which would allocate the memory.
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read")
                # `convert` would clip images of 16 bits or floats to white, without an error.
                if opened.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                    raise ValueError(f"pixels of kind {opened.mode}: convert it to 8 bits a channel")
                return np.asarray(opened.convert("RGB"))
        except _DECODE_ERRORS as error:
            # Pillow's own text holds a memory address; a frame cache stores this message and must be reproducible.
            reason = "none of " + ", ".join(_FORMATS) if isinstance(error, UnidentifiedImageError) else error
            raise self._unreadable(index, f"{len(image)} bytes that are no readable image ({reason})") from error

    def _unreadable(self, index: int, found: str) -> InputError:
        """Return the error for a frame that cannot be decoded."""
        return InputError(
            f"{self.source}, episode {self.episode_id}, frame {index} of {len(self)}: found {found}; "
            "repair or re-download the file that holds this episode, or leave the episode out"
        )


@dataclass(frozen=True, eq=False)
class Demonstration:
    """An episode with its actions: float [T, A] or [T-1, A] for T images.

    Action t was executed after image t. With T-1 rows the last image has no action. `terminal` is true if the task was
    solved and false if the recording was truncated. `way` names how it was solved, where the recorder knows.
    """

    episode: Episode
    actions: NDArray[np.floating[Any]]
    terminal: bool = True
    way: str = ""

    def __post_init__(self) -> None:
        name = f"{self.episode.source}, episode {self.episode.episode_id}"
        length = len(self.episode)
        shape = self.actions.shape
        if len(shape) != 2 or shape[1] < 1 or shape[0] not in (length, length - 1):
            raise InputError(f"{name}: actions have shape {shape}, expected ({length}, A) or ({length - 1}, A)")
        if not np.isfinite(self.actions).all():
            row = int(np.flatnonzero(~np.isfinite(self.actions).all(axis=1))[0])
            raise InputError(f"{name}: action {row} is not finite: {self.actions[row].tolist()}")


@dataclass(frozen=True)
class Part:
    """A part of a data set that is read from front to back: usually one file."""

    name: str
    """unique within its source and the same on every machine; named in messages"""
    episodes: int | None
    """how many it holds; None if that is known only after reading"""


class EpisodeSource(Protocol):
    """A data set as a list of parts with episodes, the interface for streaming, sharding and resuming.

    Parts are distributed over ranks and readers; within a part the order never changes. Opening a source reads no
    episode; a source can be pickled, and opens its files in the process that reads them.
    """

    name: str
    """the same as in `Episode.source`"""

    def parts(self) -> Sequence[Part]:
        """Return all parts, in a fixed order."""

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one part from number `start` on, images still compressed.

        Raises:
            InputError: the part is damaged from here on; the message names file and episode.
        """


class TooManySkippedError(InputError):
    """More episodes are unusable than allowed."""


class SkippedEpisodes:
    """List of skipped episodes, each named in the log; one more than `limit` stops the run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: list[str] = []

    def add(self, error: InputError, *, count: int = 1) -> None:
        """Count an episode, or several of one file; `error` names it and the damage.

        Raises:
            TooManySkippedError: there are more than `limit`.
        """
        # One message for each episode: readers count by them how many numbers of a part were skipped.
        self.messages += [str(error)] * count
        if len(self.messages) > self.limit:
            raise TooManySkippedError(
                f"too many unusable episodes: {len(self.messages)} where {self.limit} were allowed; the last: {error}"
            ) from error
        _LOG.warning("episode skipped: %s", error)


def _decode_jpeg(
    data: bytes, at_least: tuple[int, int] | None, out: NDArray[np.uint8] | None
) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG as `Episode.decode` does; None for what is left to Pillow, damaged data included."""
    # Scales above 1/2 would save nothing: the decoder is slow at them, and a resize follows anyway.
    scale = {} if at_least is None else {"min_height": at_least[0], "min_width": at_least[1], "min_factor": 2.0}
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data, **scale)
        # Four inks become RGB by another rule than Pillow's.
        if colors in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
            return None
        buffer = out if out is not None and out.shape[:2] == (height, width) else None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **scale, buffer=buffer)
    except ValueError:
        return None
    return pixels if buffer is None else buffer


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 95) -> bytes:
    """Compress uint8 [H, W, 3] to JPEG without chroma subsampling; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    # Subsampled chroma would spread the colors of small objects over their neighbors.
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
