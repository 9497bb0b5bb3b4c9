"""Generated data: moving squares as a frame cache and as a CALVIN data set, in seconds and without any download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import cache_frames

COLORS = np.array([[230, 60, 40], [40, 200, 60], [60, 90, 240]], np.uint8)
HZ = 5.0
TRAJECTORIES = 8


def moving_square(number: int, *, length: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 [length, height, width, 3]: a square that moves left or right over a ground of random blocks.

    Args:
        number: of the video; decides the ground, the color and the direction.
        length: frames.
        height: pixels.
        width: pixels.
    """
    block = 8
    blocks = np.random.default_rng(number).integers(0, 256, (-(-height // block), -(-width // block), 3), np.uint8)
    ground = blocks.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    video = np.broadcast_to(ground, (length, height, width, 3)).copy()
    side = height // 3
    for t in range(length):
        left = (2 * number + (2 * t if number % 2 else -2 * t)) % (width - side)
        video[t, side : 2 * side, left : left + side] = COLORS[number % len(COLORS)]
    return video


def write_frames(out: Path, *, episodes: int, length: int, height: int, width: int) -> Path:
    """Write a frame cache and return its folder.

    Args:
        out: the folder; one that is complete is left as it is.
        episodes: how many.
        length: frames of each.
        height: pixels.
        width: pixels.
    """
    videos = (moving_square(n, length=length, height=height, width=width) for n in range(episodes))
    cache_frames(
        (
            Episode("squares", str(n), f"push the square to the {'right' if n % 2 else 'left'}", HZ, tuple(video))
            for n, video in enumerate(videos)
        ),
        out,
        height=height,
        width=width,
        description={"moving squares": episodes},
    )
    return out


def write_calvin(out: Path, *, length: int, px: int) -> Path:
    """Write a CALVIN data set whose actions tell which way the square moves, and return its folder.

    Args:
        out: the folder.
        length: time steps of each trajectory.
        px: side of the images.
    """
    writer = CalvinWriter(out, "training", compress_level=0)
    rng = np.random.default_rng(0)
    for number in range(TRAJECTORIES):
        actions = rng.uniform(-0.2, 0.2, (length, 7))
        actions[:, 0] += 0.5 if number % 2 else -0.5
        actions[:, 6] = np.where(np.arange(length) < length // 2, 1, -1)
        writer.write_episode(
            {
                "rgb_static": moving_square(number, length=length, height=px, width=px),
                "actions": actions,
                "rel_actions": actions,
                "robot_obs": np.zeros((length, 15)),
                "scene_obs": np.zeros((length, 24)),
            },
            first_frame=1000 * number,
            task="push_left" if number % 2 else "push_right",
            instruction="push the square",
            scene="D",
        )
    writer.finish()
    return out
