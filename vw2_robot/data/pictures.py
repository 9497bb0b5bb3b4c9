"""Compressed picture -> pixels of the training size, as fast as the decoder.

Pixels are those of the frame cache, bit for bit: the same decoder and the same resize. What is saved is the way there.
Pillow reads the header of a JPEG in Python, for a small picture a third of all time and under the interpreter's lock;
here the few bytes that matter are read and the rest goes to the decoder, into a picture that each thread keeps.
Everything that is no plain colour JPEG takes the ordinary way, `Episode.decode`, which also words the error for a
picture that cannot be read.

`draft` decodes at 1/2, 1/4 or 1/8 where the picture is at least that much larger than wanted. It is faster and gives
slightly other pixels, so it is off unless asked for.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .episodes import Episode
from .frames import Aspect, resize_frame

# H, W pixels
_PLAIN = (0xC0, 0xC1, 0xC2)  # start of a baseline, extended or progressive frame
_OTHER_FRAMES = (*range(0xC3, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ADOBE = 0xEE  # may say that the three channels are no YCbCr
_SCRATCH = threading.local()


def read_frame(
    episode: Episode, index: int, *, height: int, width: int, aspect: Aspect = "stretch", draft: bool = False
) -> NDArray[np.uint8]:
    """Return frame `index` as uint8 [height, width, 3].

    Raises:
        InputError: the frame is no picture; names source, episode and frame.
    """
    data = episode.images[index]
    picture = _plain_jpeg(data, (width, height) if draft else None) if isinstance(data, bytes) else None
    if picture is None:
        return resize_frame(episode.decode(index), height=height, width=width, aspect=aspect)
    if aspect == "stretch" and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, 3)
    return resize_frame(pixels, height=height, width=width, aspect=aspect)


def _plain_jpeg(data: bytes, wanted: tuple[int, int] | None) -> Image.Image | None:
    """Return this thread's scratch picture with `data` in it; smaller by 2, 4 or 8 if that still holds `wanted`."""
    size = _jpeg_size(data)
    if size is None:
        return None
    scale = 1
    if wanted is not None:
        ratio = min(size[0] // wanted[0], size[1] // wanted[1])
        scale = next((step for step in (8, 4, 2) if ratio >= step), 1)
    scaled = (-(-size[0] // scale), -(-size[1] // scale))
    picture: Image.Image | None = getattr(_SCRATCH, "picture", None)
    if picture is None or picture.size != scaled:
        picture = _SCRATCH.picture = Image.new("RGB", scaled)
    try:
        picture.frombytes(data, "jpeg", "RGB", "", scale, 0)
        return picture
    except (ValueError, OSError):  # damaged: the ordinary way finds the words
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (W, H) from the header of a plain 8-bit three-channel JPEG, None for everything else."""
    position = 2
    if data[:2] != b"\xff\xd8":
        return None
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _PLAIN:
            height, width = (
                (data[position + 5] << 8) + data[position + 6],
                (data[position + 7] << 8) + data[position + 8],
            )
            plain = data[position + 4] == 8 and data[position + 9] == 3 and 0 < height * width < 2**24
            return (width, height) if plain else None
        if marker in _OTHER_FRAMES or marker == _ADOBE or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            return None
        position += 2 + (data[position + 2] << 8) + data[position + 3]
    return None
