"""Decoding and resizing of images: compressed images -> the pixels of a clip, as fast as the decoder.

The pixels equal those of the frame cache, bit for bit: the same decoder and the same resizing. Only the overhead
differs. Pillow reads the header of a JPEG in Python, which for a small image takes a third of the time and holds the
interpreter's lock. Here only the needed bytes of the header are read, and the decoder writes into an image that each
thread reuses. Small frames are put one below the other and copied out of Pillow together. Everything that is no plain
color JPEG is decoded by `Episode.decode`, which also raises the error for an image that cannot be read.

`draft` decodes at 1/2, 1/4 or 1/8 of the size where the image is at least that much larger than needed. It is faster
and gives slightly different pixels, so it is off by default.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import InputError

from .episodes import Episode

# T frames · H, W pixels
Aspect = Literal["stretch", "pad"]
# Markers of a JPEG file (ITU-T T.81, table B.1).
_PLAIN = (0xC0, 0xC1, 0xC2)  # start of a baseline, extended or progressive frame
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ADOBE = 0xEE  # may say that the three channels are not YCbCr
_STRIP_PIXELS = 2**18  # of frames that are copied out of Pillow together
_SCRATCH = threading.local()


class ImageError(InputError):
    """Frame `frame` of an episode cannot be decoded."""

    def __init__(self, error: InputError, frame: int) -> None:
        super().__init__(str(error))
        self.frame = frame


def resize_frame(frame: NDArray[np.uint8], *, height: int, width: int, aspect: Aspect = "stretch") -> NDArray[np.uint8]:
    """Return an image resized to [height, width, 3] with an antialiased bilinear filter.

    Args:
        frame: uint8 [h, w, 3]; returned as it is if it has the right size.
        height: pixels.
        width: pixels.
        aspect: `stretch` ignores the aspect ratio (as the release does); `pad` keeps it and centers the image on black.
    """
    if frame.shape[:2] == (height, width):
        return frame
    if aspect == "stretch":
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    # Rounded halves up and at least one pixel, so that very long images survive.
    scale = min(height / frame.shape[0], width / frame.shape[1])
    inner_h = min(height, max(1, math.floor(frame.shape[0] * scale + 0.5)))
    inner_w = min(width, max(1, math.floor(frame.shape[1] * scale + 0.5)))
    top = (height - inner_h) // 2
    left = (width - inner_w) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = resize_frame(frame, height=inner_h, width=inner_w)
    return padded


def read_clip(
    episode: Episode,
    frame_ids: Sequence[int],
    out: NDArray[np.uint8],
    *,
    aspect: Aspect = "stretch",
    draft: bool = False,
) -> None:
    """Decode some frames of an episode; a frame that follows itself is decoded once.

    Args:
        episode: images may be compressed or arrays.
        frame_ids: T indices into its images.
        out: uint8 [T, H, W, 3], written in place.
        aspect: see `resize_frame`.
        draft: decode JPEG at a fraction of its size, see the top of this file.

    Raises:
        ImageError: a frame cannot be decoded; names source, episode and frame.
    """
    together = min(len(frame_ids), max(1, _STRIP_PIXELS // (out.shape[1] * out.shape[2])))
    for first in range(0, len(frame_ids), together):
        some = slice(first, first + together)
        _read_strip(episode, frame_ids[some], out[some], together, aspect=aspect, draft=draft)


def _read_strip(
    episode: Episode, frame_ids: Sequence[int], out: NDArray[np.uint8], together: int, *, aspect: Aspect, draft: bool
) -> None:
    """Decode up to `together` frames by way of one tall image."""
    height, width = out.shape[1:3]
    strip = _scratch("strip", (width, together * height))
    apart: dict[int, NDArray[np.uint8]] = {}  # frames that are not decoded into the strip
    for place, frame in enumerate(frame_ids):
        if place and frame == frame_ids[place - 1]:
            continue  # copied from its predecessor below
        data = episode.images[frame]
        image = None
        if isinstance(data, bytes) and aspect == "stretch":
            image = _plain_jpeg(data, (width, height) if draft else None)
        if image is None:
            try:
                apart[place] = resize_frame(episode.decode(frame), height=height, width=width, aspect=aspect)
            except InputError as error:
                raise ImageError(error, frame) from error
            continue
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        strip.paste(image, (0, place * height))
    # A copy out of Pillow holds the interpreter's lock, so all frames of the strip are copied at once.
    if len(apart) < len(frame_ids):
        out[:] = np.frombuffer(strip.tobytes(), np.uint8).reshape(together, height, width, 3)[: len(frame_ids)]
    for place, frame in enumerate(frame_ids):
        if place in apart:
            out[place] = apart[place]
        elif place and frame == frame_ids[place - 1]:
            out[place] = out[place - 1]


def _plain_jpeg(data: bytes, wanted: tuple[int, int] | None) -> Image.Image | None:
    """Return this thread's scratch image with `data` in it; smaller by 2, 4 or 8 if that still holds `wanted`."""
    size = _jpeg_size(data)
    if size is None:
        return None
    scale = 1
    if wanted is not None:
        ratio = min(size[0] // wanted[0], size[1] // wanted[1])
        scale = next((step for step in (8, 4, 2) if ratio >= step), 1)
    image = _scratch("image", (-(-size[0] // scale), -(-size[1] // scale)))
    try:
        image.frombytes(data, "jpeg", "RGB", "", scale, 0)
    except (ValueError, OSError):  # damaged: `Episode.decode` raises the error
        return None
    return image


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (W, H) from the header of a plain 8-bit three-channel JPEG, None for everything else."""
    # Segments follow each other up to the frame header, which holds the size.
    position = 2
    if data[:2] != b"\xff\xd8":
        return None
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _PLAIN:
            height = (data[position + 5] << 8) + data[position + 6]
            width = (data[position + 7] << 8) + data[position + 8]
            plain = data[position + 4] == 8 and data[position + 9] == 3 and 0 < height * width < 2**24
            return (width, height) if plain else None
        if marker in _OTHER_FRAMES or marker == _ADOBE or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            return None
        position += 2 + (data[position + 2] << 8) + data[position + 3]  # to the next segment
    return None


def _scratch(name: str, size: tuple[int, int]) -> Image.Image:
    """Return an image that this thread reuses; its content is undefined."""
    image: Image.Image | None = getattr(_SCRATCH, name, None)
    if image is None or image.size != size:
        image = Image.new("RGB", size)
        setattr(_SCRATCH, name, image)
    return image
