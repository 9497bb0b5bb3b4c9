"""A video is there, whole and under its name, or there is none and the reason is told."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.storage.mp4 import Mp4Writer

pytest.importorskip("imageio_ffmpeg")
FRAME = np.full((33, 48, 3), 90, np.uint8)  # odd: the format has none, a row is added


def write(path: Path, encoding: tuple[str, ...] = ("-crf", "20")) -> Path:
    with Mp4Writer(path, fps=10.0, encoding=encoding) as video:
        for _ in range(3):
            video.add(FRAME)
    return path


def test_equal_frames_give_equal_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mp4").read_bytes() == write(tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_full_disk_is_told_with_the_name_of_the_video(tmp_path: Path) -> None:
    full = ("-f", "rawvideo", "/dev/full", "-c:v", "libx264")  # a second output, on a device that is always full
    with pytest.raises(OSError, match="No space left") as raised:
        write(tmp_path / "a.mp4", full)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "a.mp4"))
    assert not list(tmp_path.iterdir())


def test_ffmpeg_that_ends_early_or_is_ended_leaves_no_video(tmp_path: Path) -> None:
    video = Mp4Writer(tmp_path / "a.mp4", fps=10.0, encoding=())
    video.add(FRAME)
    assert video._ffmpeg is not None
    os.kill(video._ffmpeg.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"ffmpeg did not write .*a\.mp4 \(exit status -9, it reported: nothing\)"):
        video.close()
    with pytest.raises(InputError, match=r"it reported: .*Option not found"):
        write(tmp_path / "b.mp4", ("-nonsense", "1"))

    def stop() -> None:
        with Mp4Writer(tmp_path / "c.mp4", fps=10.0, encoding=()) as stopped:
            stopped.add(FRAME)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match=r"videos/a\.mp4"):
        write(tmp_path / "videos/a.mp4")
