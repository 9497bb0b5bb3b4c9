from __future__ import annotations

import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from vw2_robot.envs import CALVIN_ID
from vw2_robot.envs.video_recorder import VideoRecorder
from vw2_robot.errors import InputError

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
pytestmark = pytest.mark.sim

STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


def make(folder: Path, *, render_mode: str | None = "rgb_array", limit: int | None = None, **options: Any) -> Any:
    env = gymnasium.make(CALVIN_ID, cameras=(), render_mode=render_mode, max_episode_steps=limit, reset_mode="legacy")
    try:
        return VideoRecorder(env, folder, **options)
    except InputError:
        env.close()
        raise


def read(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Images [n, 200, 200, 3] of a video, and how many it shows in a second."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    about = re.search(r"Video: h264.* 200x200.* ([\d.]+) fps", done.stderr.decode())
    assert about, done.stderr.decode()
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, 200, 200, 3), float(about[1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_video_shows_the_reset_and_every_step_in_real_time(tmp_path: Path) -> None:
    env = make(tmp_path / "new" / "videos")
    env.reset(seed=0)
    seen = [env.render()]
    for _ in range(6):
        env.step(np.array([1, 1, -1, 0, 0, 1, -1], np.float32))
        seen.append(env.render())
    env.close()
    images, fps = read(tmp_path / "new" / "videos" / "episode_0000.mp4")
    assert (len(images), fps) == (7, 30.0)
    for image, shown in zip(images, seen, strict=True):
        assert np.abs(image.astype(float) - shown).mean() < 6
    assert np.abs(images[-1].astype(float) - seen[0]).mean() > np.abs(images[0].astype(float) - seen[0]).mean()


def test_every_third_step_gives_a_third_of_the_images_at_a_third_of_the_rate(tmp_path: Path) -> None:
    env = make(tmp_path, every=3)
    env.reset(seed=0)
    for _ in range(7):
        env.step(STILL)
    env.close()
    images, fps = read(tmp_path / "episode_0000.mp4")
    assert (len(images), fps) == (1 + 2, 10.0)


def test_each_selected_episode_gets_a_video_of_its_own(tmp_path: Path) -> None:
    env = make(tmp_path, episode_trigger=lambda number: number % 2 == 0, prefix="try")
    for steps in (1, 5, 2):
        env.reset(seed=0)
        for _ in range(steps):
            env.step(STILL)
    env.close()
    assert names(tmp_path) == ["try_0000.mp4", "try_0002.mp4"]
    assert [len(read(tmp_path / name)[0]) for name in names(tmp_path)] == [2, 3]


def test_a_video_is_complete_as_soon_as_its_episode_ends(tmp_path: Path) -> None:
    env = make(tmp_path, limit=3)
    env.reset(seed=0)
    env.step(STILL)
    env.step(STILL)
    assert names(tmp_path) == [".episode_0000.mp4.tmp"]
    assert env.step(STILL)[3] is True
    assert names(tmp_path) == ["episode_0000.mp4"]
    assert len(read(tmp_path / "episode_0000.mp4")[0]) == 4
    env.close()


def test_success_ends_a_video_with_the_image_of_success(tmp_path: Path) -> None:
    env = make(tmp_path)
    env.reset(seed=0, options={"task": "open_drawer"})
    env.unwrapped.scene._set_joint("base__drawer", 0.2)
    assert env.step(STILL)[2] is True
    assert names(tmp_path) == ["episode_0000.mp4"]
    assert len(read(tmp_path / "episode_0000.mp4")[0]) == 2
    env.close()


def test_closing_in_the_middle_of_an_episode_keeps_what_was_recorded(tmp_path: Path) -> None:
    env = make(tmp_path)
    env.reset(seed=0)
    env.step(STILL)
    env.close()
    env.close()
    assert names(tmp_path) == ["episode_0000.mp4"]
    assert len(read(tmp_path / "episode_0000.mp4")[0]) == 2
    assert env.unwrapped._physics.is_closed


def test_equal_episodes_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        env = make(tmp_path / folder)
        env.reset(seed=0)
        for _ in range(3):
            env.step(STILL)
        env.close()
    first, second = (tmp_path / folder / "episode_0000.mp4" for folder in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_recorded_environment_has_a_spec_that_makes_it_again(tmp_path: Path) -> None:
    env = make(tmp_path, every=2)
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert isinstance(again, VideoRecorder)
    again.reset(seed=0)
    again.step(STILL)
    again.close()
    env.close()
    assert len(read(tmp_path / "episode_0000.mp4")[0]) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"render_mode": None}, 'expected an environment with render_mode="rgb_array", found None'),
        ({"every": 0}, "every must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(tmp_path / "videos", **options)
    assert not (tmp_path / "videos").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    env = make(tmp_path / "videos")
    (tmp_path / "videos").rmdir()
    (tmp_path / "videos").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match=r"videos/episode_0000\.mp4"):
        _video_one_episode(env)
    env.unwrapped.close()


def _video_one_episode(env: Any) -> None:
    env.reset(seed=0)
    for _ in range(3):
        env.step(STILL)
    env.close()
