"""Frames -> an H.264 file that a browser plays. imageio-ffmpeg (extra `report`) is imported here."""

# T frames · H, W pixels
from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require
from vw2_robot.storage import atomic_write


def write_film(path: Path, frames: NDArray[np.uint8], *, fps: float, enlarge: int = 1) -> None:
    """Write uint8 [T, H, W, 3], every pixel `enlarge` times as large; odd sides lose their last row or column.

    One encoder thread: the same frames give the same bytes.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
        InputError: ffmpeg did not write the file.
    """
    ffmpeg = require("imageio_ffmpeg", extra="report")
    large = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    large = np.ascontiguousarray(large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        writer = ffmpeg.write_frames(
            str(temporary),
            (large.shape[2], large.shape[1]),
            fps=fps,
            codec="libx264",
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            quality=None,
            output_params=["-crf", "20", "-preset", "medium", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"],
            ffmpeg_log_level="error",
        )
        writer.send(None)
        try:
            for frame in large:
                writer.send(frame)
        except OSError as error:
            raise InputError(f"ffmpeg stopped while writing {path}: {error}; is the disk full?") from error
        finally:
            writer.close()
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise InputError(f"ffmpeg wrote nothing to {path}; is the disk full, or the folder read-only?")
