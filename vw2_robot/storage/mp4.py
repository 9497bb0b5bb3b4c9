"""H.264 mp4 videos that every browser plays, written and read by the ffmpeg of imageio-ffmpeg (extra `report`).

ffmpeg runs in a process of its own and gets the frames through a pipe. A video is written under a temporary name and
renamed once ffmpeg has ended without an error. One encoder thread: the same frames give the same bytes.
"""

# H, W pixels
from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require
from vw2_robot.storage.files import atomic_write, full_disk_error


def ffmpeg_program() -> str:
    """Return the path of imageio-ffmpeg's program.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    program: str = require("imageio_ffmpeg", extra="report").get_ffmpeg_exe()
    return program


def read_mp4(path: Path, *, height: int, width: int) -> NDArray[np.uint8]:
    """Return all frames of a video, uint8 [T, H, W, 3].

    Args:
        path: the mp4.
        height: of its frames.
        width: of its frames.

    Raises:
        InputError: it is damaged, or its frames have another size.
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    program = ffmpeg_program()
    command = [program, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout or len(done.stdout) % (height * width * 3):
        why = done.stderr.decode(errors="replace").strip()[:200] or f"its frames are not {width} x {height}"
        raise InputError(f"{path} cannot be read: {why}; copy it again, or delete it")
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


class Mp4Writer:
    """An open video: `add` frames of one size, then `close`; an error inside a `with` block leaves no file.

    Args:
        path: the mp4.
        fps: frames per second.
        encoding: further arguments of ffmpeg.
    """

    def __init__(self, path: Path, *, fps: float, encoding: Sequence[str]) -> None:
        """Find ffmpeg; it is started with the first frame.

        Raises:
            MissingExtraError: imageio-ffmpeg is not installed.
        """
        self._program = ffmpeg_program()
        self._path = path
        self._fps = fps
        self._encoding = encoding
        self._open = ExitStack()
        self._ffmpeg: subprocess.Popen[bytes] | None = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, [H, W, 3].

        Raises:
            OSError: the disk is full, or the folder cannot be written to; with the file's name.
            InputError: ffmpeg ended for another reason.
        """
        if self._ffmpeg is None:
            self._ffmpeg = self._start(height=frame.shape[0], width=frame.shape[1])
        assert self._ffmpeg.stdin is not None
        try:
            self._ffmpeg.stdin.write(np.ascontiguousarray(frame).data)
        except OSError:
            self.close()  # raises the reason why ffmpeg ended
            raise

    def close(self) -> None:
        """Finish the video and give it its name; the errors are those of `add`. A second call does nothing."""
        ffmpeg = self._ffmpeg
        self._ffmpeg = None
        if ffmpeg is None:
            return
        with self._open:
            _, stderr = ffmpeg.communicate()
            if ffmpeg.returncode != 0:
                text = stderr.decode(errors="replace")
                last = text.strip().splitlines()[-1:] or ["nothing"]
                raise full_disk_error(text, self._path) or InputError(
                    f"ffmpeg did not write {self._path} (exit status {ffmpeg.returncode}, it reported: {last[0]})"
                )

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._ffmpeg is not None:
            self._ffmpeg.kill()
            self._ffmpeg.communicate()
            self._ffmpeg = None
            self._open.__exit__(kind, error, trace)

    def _start(self, *, height: int, width: int) -> subprocess.Popen[bytes]:
        """Start ffmpeg for frames of that size; they are only known from the first one."""
        temporary = self._open.enter_context(atomic_write(self._path))
        # A fraction, since rates such as 1/3 have no exact decimal.
        rate = str(Fraction(self._fps).limit_denominator())
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
        if height % 2 or width % 2:  # the format has no odd sizes
            frames += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
        # yuv420p is what every browser decodes; from RGB, libx264 would keep 4:4:4.
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", *self._encoding, "-threads", "1", "-f", "mp4"]
        try:
            return subprocess.Popen(
                # Errors only: stderr is not read before the end, and a full pipe would stop ffmpeg.
                [self._program, "-v", "error", "-y", *frames, *codec, str(temporary)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C goes to this program, which then ends ffmpeg
            )
        except BaseException as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            raise
