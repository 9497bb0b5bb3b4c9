"""LeRobot itself opens what is converted, and what it records can be converted.

It needs Python 3.12 and an environment of its own, with `lerobot[dataset]==0.6.1` beside the core of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="LeRobot is not installed (it needs an environment of its own)")

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vw2_robot.conversion.config import ConvertConfig
from vw2_robot.conversion.open_records import open_records
from vw2_robot.data.sources.calvin import CalvinDataset

Run = Callable[..., Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LeRobot keeps its caches in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def to_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def test_lerobot_sees_the_same_frames_and_actions(calvin: Path, run: Run) -> None:
    found = LeRobotDataset("local/set", root=run(calvin, "set", "lerobot", frames_per_file=10))
    assert (found.num_episodes, found.fps, found.meta.info.splits["train"]) == (5, 30, "0:4")
    index = 0
    for split in ("training", "validation"):
        dataset = CalvinDataset(calvin, split)  # type: ignore[arg-type]
        for one in dataset.trajectories:
            actions = dataset.read_actions(one)
            for camera in ("static", "gripper"):
                for frame, image in enumerate(dataset.read_images(one, camera=camera)):
                    item = found[index + frame]
                    assert np.array_equal(to_bytes(item[f"observation.images.{camera}"]), image)
                    assert item["action"].numpy().tobytes() == actions[frame].tobytes()
                    assert item["task"] == one.instruction
            index += one.length
    assert len(found) == index
    some = LeRobotDataset(
        "local/set", root=found.root, episodes=[1], delta_timestamps={"action": [0.0, 1 / 30, 2 / 30]}
    )
    assert (len(some), some[0]["action"].shape) == (9, (3, 7))
    assert set(found.meta.stats) >= {"action", "observation.state", "observation.images.static"}


def test_what_lerobot_recorded_keeps_its_actions(run: Run, tmp_path: Path) -> None:
    features = {
        "observation.images.top": {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (6,), "names": None},
        "action": {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}" for i in range(6)]},
    }
    made = LeRobotDataset.create("local/made", fps=10, features=features, root=tmp_path / "made", use_videos=True)
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(3, 5, 6)).astype(np.float32)
    for episode in actions:
        for action in episode:
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            frame = {"observation.images.top": image, "observation.state": -action, "action": action}
            made.add_frame({**frame, "task": "wave"})
        made.save_episode()
    made.finalize()
    out = run(tmp_path / "made", "out", "lerobot")
    source, _ = open_records(ConvertConfig(in_=str(out), out="x", format="calvin"))
    records = [record for part in range(len(source.parts())) for record in source.read(part)]
    assert [record.numbers["action"].tobytes() for record in records] == [episode.tobytes() for episode in actions]
    assert [record.episode.instruction for record in records] == ["wave"] * 3
    again = LeRobotDataset("local/out", root=out)
    assert again[7]["action"].numpy().tobytes() == actions[1, 2].tobytes()
