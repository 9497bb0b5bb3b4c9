"""One recorded robot episode, its images still compressed: what every reader yields and every writer takes.

The place in the flow: `rlds` (or a simulator) makes episodes, `frames` decodes them once into the training cache. An
`Episode` holds what latent pre-training may use (images, words, rate); a `Demonstration` adds the actions. Images
are JPEG or PNG bytes as they lay on disk, or uint8 arrays, and are decoded one at a time, so an episode of a few
hundred large frames costs megabytes, not gigabytes.

This is not a file format and knows no TensorFlow.
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
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError

_LOG = logging.getLogger(__name__)

MAX_PIXELS = 2**26
"""Largest image that is decoded, 8192 x 8192; a few bytes can claim far more."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow would hand others to programs outside, such as Ghostscript
# What Pillow raises for bytes that are no image, a cut-off image, a broken PNG chunk, or an absurd size.
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
    """Images in time order at `hz` frames per second, with the instruction that was given.

    `episode_id` is unique within `source`. `instruction` may be empty: such episodes exist in Open-X.
    """

    source: str
    episode_id: str
    instruction: str
    hz: float
    images: tuple[bytes | NDArray[np.uint8], ...]

    def __post_init__(self) -> None:
        """Reject names and words that no file could hold: halves of characters, out of a damaged text."""
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

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index` as uint8 [H, W, 3] RGB.

        Raises:
            InputError: the frame is no image; names source, episode and frame.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise self._bad_frame(index, f"an array {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
            return image
        try:
            with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read")
                if opened.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                    raise ValueError(f"pixels of kind {opened.mode}: convert it to 8 bits a channel")
                return np.asarray(opened.convert("RGB"))
        except _DECODE_ERRORS as error:
            # Pillow would say where in memory the bytes lie, and a frame cache keeps this text.
            reason = "none of " + ", ".join(_FORMATS) if isinstance(error, UnidentifiedImageError) else error
            raise self._bad_frame(index, f"{len(image)} bytes that are no readable image ({reason})") from error

    def _bad_frame(self, index: int, found: str) -> InputError:
        return InputError(
            f"{self.source}, episode {self.episode_id}, frame {index} of {len(self)}: found {found}; "
            "repair or re-download the file that holds this episode, or leave the episode out"
        )


@dataclass(frozen=True, eq=False)
class Demonstration:
    """An episode with its actions: float [T, 7] or [T-1, 7] for T images.

    Action t is what was done after image t was seen. With T-1 rows the last image has no action. `terminal` is true
    for a real end (the task was solved) and false for a recording that was cut off.
    """

    episode: Episode
    actions: NDArray[np.floating[Any]]
    terminal: bool = True

    def __post_init__(self) -> None:
        name, length = f"{self.episode.source}, episode {self.episode.episode_id}", len(self.episode)
        shape = self.actions.shape
        if len(shape) != 2 or shape[1] != ACTION_DIM or shape[0] not in (length, length - 1):
            raise InputError(
                f"{name}: actions have shape {shape}, expected ({length}, {ACTION_DIM}) or ({length - 1}, {ACTION_DIM})"
            )
        if not np.isfinite(self.actions).all():
            row = int(np.flatnonzero(~np.isfinite(self.actions).all(axis=1))[0])
            raise InputError(f"{name}: action {row} is not finite: {self.actions[row].tolist()}")


@dataclass(frozen=True)
class Part:
    """A piece of a data set that is read from front to back: usually one file."""

    name: str
    """unique within its source and the same on every machine; named in messages"""
    episodes: int | None
    """how many it holds; None where only reading tells"""


class EpisodeSource(Protocol):
    """A data set as parts, each a run of episodes: what streaming, sharding and resuming need of a format.

    Parts are shared out among ranks and workers; within a part the order never changes. Opening a source reads no
    episode; a source can be pickled, and opens its files where it is read.
    """

    name: str
    """as it appears in `Episode.source`"""

    def parts(self) -> Sequence[Part]:
        """All parts, in a fixed order."""

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """The episodes of one part from number `start` on, images still compressed.

        Raises:
            InputError: the part is damaged from here on; the message names file and episode.
        """


class TooManySkippedError(InputError):
    """More of the data is unusable than was allowed."""


class SkippedEpisodes:
    """Episodes that were left out, each named in the log; one more than `limit` stops the run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: list[str] = []

    def add(self, error: InputError, *, count: int = 1) -> None:
        """Count an episode, or several of one file; `error` says which and what is wrong with it.

        Raises:
            TooManySkippedError: there are more than `limit`.
        """
        self.messages += [str(error)] * count
        if len(self.messages) > self.limit:
            raise TooManySkippedError(
                f"too many unusable episodes: {len(self.messages)} where {self.limit} were allowed; the last: {error}"
            ) from error
        _LOG.warning("episode skipped: %s", error)


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 95) -> bytes:
    """Compress uint8 [H, W, 3] to JPEG without chroma subsampling; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
