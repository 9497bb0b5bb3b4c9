from __future__ import annotations

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the models are tiny; two test processes share two cores
LENGTH = 7


@pytest.fixture
def write_calvin(tmp_path):
    """Write a CALVIN data set whose pixels and actions say where they come from.

    Trajectory n, time t: green pixel 10 * t, red pixel 20 * n; action dx = t / 10, dy = n / 10, gripper by parity of t.
    """
    from vw2_robot.data.calvin_writer import CalvinWriter

    def write(count=8, *, length=LENGTH, tasks=2, name="calvin"):
        writer = CalvinWriter(tmp_path / name, "training", compress_level=0)
        for number in range(count):
            video = np.zeros((length, 8, 8, 3), np.uint8)
            actions = np.zeros((length, 7))
            for t in range(length):
                video[t] = (20 * number, 10 * t, 0)
                actions[t] = (t / 10, number / 10, 0, 0, 0, 0, 1 if t % 2 else -1)
            writer.write_episode(
                {
                    "rgb_static": video,
                    "actions": actions,
                    "rel_actions": actions,
                    "robot_obs": np.zeros((length, 15)),
                    "scene_obs": np.zeros((length, 24)),
                },
                first_frame=100 * number,
                task=f"task_{number % tasks}",
                instruction=f"do {number}",
                scene="D",
            )
        writer.finish()
        return tmp_path / name

    return write
