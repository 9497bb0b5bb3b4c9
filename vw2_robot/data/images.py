"""Decoding and resizing of images: compressed images -> the pixels of a clip, as fast as the decoder.

The frame cache, streams and replays all read frames by `read_frame`, so their pixels are equal, bit for bit.

`decode` says what happens to a JPEG that is at least twice as large as needed. `scaled` decodes it at 1/8 to 4/8 of
its size (the decoder transforms the low frequencies of a block alone) and resizes the rest of the way; `full` decodes
all of it first, as a simulator's images are resized at control time. Scaled pixels are a little sharper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import InputError

from .episodes import Episode

# T frames · H, W pixels
Aspect = Literal["stretch", "pad"]
Decode = Literal["scaled", "full"]


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


def read_frame(episode: Episode, index: int, out: NDArray[np.uint8], *, aspect: Aspect, decode: Decode) -> None:
    """Decode one frame of an episode, resized to the size of `out`.

    Args:
        episode: images may be compressed or arrays.
        index: of the frame.
        out: contiguous uint8 [H, W, 3], written in place.
        aspect: see `resize_frame`.
        decode: see the top of this file.

    Raises:
        InputError: it cannot be decoded; names source, episode and frame.
    """
    height, width = out.shape[:2]
    pixels = episode.decode(index, at_least=(height, width) if decode == "scaled" else None, out=out)
    if pixels is not out:
        out[:] = resize_frame(pixels, height=height, width=width, aspect=aspect)


def read_clip(
    episode: Episode,
    frame_ids: Sequence[int],
    out: NDArray[np.uint8],
    *,
    aspect: Aspect = "stretch",
    decode: Decode = "scaled",
) -> None:
    """Decode some frames of an episode; a frame that follows itself is decoded once.

    Args:
        episode: images may be compressed or arrays.
        frame_ids: T indices into its images.
        out: contiguous uint8 [T, H, W, 3], written in place.
        aspect: see `resize_frame`.
        decode: see the top of this file.

    Raises:
        ImageError: a frame cannot be decoded; names source, episode and frame.
    """
    for place, frame in enumerate(frame_ids):
        if place and frame == frame_ids[place - 1]:
            out[place] = out[place - 1]
            continue
        try:
            read_frame(episode, frame, out[place], aspect=aspect, decode=decode)
        except InputError as error:
            raise ImageError(error, frame) from error
