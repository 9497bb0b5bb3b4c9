"""A Gymnasium wrapper that records episodes as videos: one H.264 mp4 each, without captions.

    env = gymnasium.make("vw2_robot/Calvin-v0", cameras=(), render_mode="rgb_array")
    env = VideoRecorder(env, "videos", every=2)          # videos/episode_0000.mp4, at 15 images per second

It works with any environment with `render_mode="rgb_array"`. Gymnasium's own RecordVideo needs moviepy, which is not
compatible with current versions of Pillow; this needs imageio-ffmpeg, the extra "report". Rendering dominates the cost
(`every` divides it); ffmpeg encodes in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from vw2_robot.errors import InputError, require
from vw2_robot.storage.mp4 import Mp4Writer

DEFAULT_FPS = 30
ENCODING = ("-crf", "20", "-preset", "medium", "-movflags", "+faststart")


class VideoRecorder(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A wrapper that records videos of episodes.

    A video begins at a reset, holds the image after it and after every `every`-th step, plays in real time, and is
    complete once the episode ends: terminated, truncated, ended by the next reset, or by `close`. Until then it has a
    temporary name. A video of the same name from an earlier run is replaced, so two recorders need two folders or two
    prefixes.

    Args:
        env: the environment; its render mode must be "rgb_array".
        folder: where the videos are written.
        every: number of steps per image.
        episode_trigger: returns whether episode number i, from 0, is recorded; None: every episode.
        prefix: begin of the file names.

    Raises:
        InputError: another render mode, or `every` below 1.
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
        # Real time: the environment's rate, divided by the steps between images.
        self._fps = env.metadata.get("render_fps", DEFAULT_FPS) / every
        self._episode = -1
        self._steps = 0
        self._video: Mp4Writer | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Complete the video of the previous episode, then reset and begin the next; arguments as in Gymnasium."""
        self._finish()
        observation, info = self.env.reset(seed=seed, options=options)
        self._episode += 1
        self._steps = 0
        if self._trigger is None or self._trigger(self._episode):
            path = self._folder / f"{self._prefix}_{self._episode:04d}.mp4"
            self._video = Mp4Writer(path, fps=self._fps, encoding=ENCODING)
            self._add_image(self._video)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Execute one step, and record its image if it is an `every`-th one."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if self._video is not None and self._steps % self._every == 0:
            self._add_image(self._video)
        if terminated or truncated:
            self._finish()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Complete the present video, then close the environment."""
        try:
            self._finish()
        finally:
            self.env.close()

    def _add_image(self, video: Mp4Writer) -> None:
        """Render the environment and add the image to the video."""
        # Outside the try block: an error of rendering is the environment's, and the video stays open.
        image: Any = self.env.render()
        try:
            video.add(image)
        except (InputError, OSError):
            self._video = None  # the video cannot be continued; the episode can
            raise

    def _finish(self) -> None:
        # Forget the video first: if closing it fails, it must not be closed again.
        video = self._video
        self._video = None
        if video is not None:
            video.close()
