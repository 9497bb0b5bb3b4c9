"""Writing of a clip as an mp4 video."""

# T frames · H, W pixels
from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.mp4 import Mp4Writer


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: float, enlarge: int = 1) -> None:
    """Write frames as a video; the same frames give the same bytes.

    Args:
        path: of the video; its folder is made.
        frames: uint8 [T, H, W, 3].
        fps: frames per second.
        enlarge: side of the square that every pixel becomes.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
        OSError, InputError: ffmpeg did not write the file.
    """
    large = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    # H.264 with subsampled colors needs even sides: an odd one loses its last row or column.
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, fps=fps, encoding=["-crf", "20", "-preset", "medium", "-movflags", "+faststart"]) as video:
        for frame in large:
            video.add(frame)
