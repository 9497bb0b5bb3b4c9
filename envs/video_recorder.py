"""A Gymnasium wrapper that films episodes: one H.264 mp4 each, without captions.

    env = gymnasium.make("vw2_robot/Calvin-v0", cameras=(), render_mode="rgb_array")
    env = VideoRecorder(env, "videos", every=2)          # videos/episode_0000.mp4, at 15 pictures a second

Any environment with `render_mode="rgb_array"` will do. Gymnasium's own RecordVideo needs moviepy, which does not get on
with current versions of Pillow; this needs imageio-ffmpeg, the extra "report". Rendering dominates the cost (`every`
divides it); encoding runs in ffmpeg's own process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require

DEFAULT_FPS = 30


class VideoRecorder(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Films the episodes for which `episode_trigger(number)` holds (all by default; the first is number 0).

    A film begins at a reset, takes the picture after it and after every `every`-th step, plays in real time, and is
    complete once the episode ends: terminated, truncated, cut off by the next reset, or by `close`. Until then it has a
    temporary name. A film of the same name from an earlier run is replaced, so two recorders need two folders or two
    prefixes.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        folder: str | Path,
        *,
        every: int = 1,
        episode_trigger: Callable[[int], bool] | None = None,
        prefix: str = "episode",
    ) -> None:
        RecordConstructorArgs.__init__(
            self, folder=str(folder), every=every, episode_trigger=episode_trigger, prefix=prefix
        )
        super().__init__(env)
        if env.render_mode != "rgb_array":
            raise InputError(
                f'VideoRecorder: expected an environment with render_mode="rgb_array", found {env.render_mode!r}; pass '
                "it to gymnasium.make"
            )
        if every < 1:
            raise InputError(f"VideoRecorder: every must be at least 1, found {every}")
        require("imageio_ffmpeg", extra="report")
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._every = every
        self._trigger = episode_trigger
        self._prefix = prefix
        self._fps = env.metadata.get("render_fps", DEFAULT_FPS) / every
        self._episode = -1
        self._steps = 0
        self._film: _Film | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Complete the film of the episode before, then reset and begin the next."""
        self._finish()
        observation, info = self.env.reset(seed=seed, options=options)
        self._episode += 1
        self._steps = 0
        if self._trigger is None or self._trigger(self._episode):
            self._film = _Film(self._folder / f"{self._prefix}_{self._episode:04d}.mp4", fps=self._fps)
            self._shoot(self._film)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step, filmed if it is an `every`-th one."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if self._film is not None and self._steps % self._every == 0:
            self._shoot(self._film)
        if terminated or truncated:
            self._finish()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Complete the film under way, then close the environment."""
        try:
            self._finish()
        finally:
            self.env.close()

    def _shoot(self, film: _Film) -> None:
        picture: Any = self.env.render()
        try:
            film.add(picture)
        except InputError:
            self._film = None  # it cannot be continued; the episode can
            raise

    def _finish(self) -> None:
        film, self._film = self._film, None
        if film is not None:
            film.finish()


class _Film:
    """One mp4 under way (yuv420p, index first, so that browsers play it). One encoder thread: equal bytes each time."""

    def __init__(self, path: Path, *, fps: float) -> None:
        self._path, self._fps = path, fps
        self._temporary = path.with_name(f".{path.name}")
        self._ffmpeg: subprocess.Popen[bytes] | None = None

    def add(self, picture: NDArray[np.uint8]) -> None:
        """One more picture, [H, W, 3]."""
        if self._ffmpeg is None:
            self._ffmpeg = self._start(height=picture.shape[0], width=picture.shape[1])
        assert self._ffmpeg.stdin is not None
        try:
            self._ffmpeg.stdin.write(picture.tobytes())
        except OSError as error:
            self.finish()  # says why it ended, if it can
            raise InputError(f"ffmpeg ended before {self._path} was complete: {error}") from error

    def finish(self) -> None:
        """Give the film its name; InputError with ffmpeg's last words where there is no film."""
        ffmpeg, self._ffmpeg = self._ffmpeg, None
        assert ffmpeg is not None, "a film begins with a picture"
        _, said = ffmpeg.communicate()
        if ffmpeg.returncode != 0:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise InputError(
                f"ffmpeg did not write {self._path} (exit status {ffmpeg.returncode}, it said: {last[0]}); is the "
                "folder still there and writable, is the disk full?"
            )
        self._temporary.replace(self._path)

    def _start(self, *, height: int, width: int) -> subprocess.Popen[bytes]:
        program = require("imageio_ffmpeg", extra="report").get_ffmpeg_exe()
        pictures = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps:g}", "-i", "-"]
        even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]  # the format has no odd sizes
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "medium", "-threads", "1"]
        return subprocess.Popen(
            [program, "-v", "error", "-y", *pictures, *even, *codec, "-movflags", "+faststart", str(self._temporary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
