"""Frames of a clip -> a video of it."""

# T frames · H, W pixels
from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.mp4 import Mp4Writer


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: float, enlarge: int = 1) -> None:
    """Write uint8 [T, H, W, 3], every pixel `enlarge` times as large; odd sides lose their last row or column.

    One encoder thread: the same frames give the same bytes.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
        OSError, InputError: ffmpeg did not write the file.
    """
    large = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, fps=fps, encoding=["-crf", "20", "-preset", "medium", "-movflags", "+faststart"]) as video:
        for frame in large:
            video.add(frame)
