"""A small CALVIN data set whose numbers have all bits of a float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vw2_robot.conversion.config import ConvertConfig
from vw2_robot.conversion.convert import convert
from vw2_robot.data.calvin_writer import CalvinWriter, Label

LENGTHS = {"training": (6, 9, 7), "validation": (5,)}
SIZE = 16


def recording(rng: np.random.Generator, length: int) -> dict[str, NDArray[Any]]:
    """The arrays of a recording, as CALVIN stores them."""
    shapes = {"actions": 7, "rel_actions": 7, "robot_obs": 15, "scene_obs": 24}
    arrays: dict[str, NDArray[Any]] = {name: rng.uniform(-1, 1, (length, n)) for name, n in shapes.items()}
    arrays["rel_actions"][:, 6] = rng.choice([-1.0, 1.0], length)
    for camera, side in (("static", SIZE), ("gripper", 8)):
        arrays[f"rgb_{camera}"] = rng.integers(0, 256, (length, side, side, 3), dtype=np.uint8)
    return arrays


@pytest.fixture(scope="session")
def calvin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits; the windows of one recording overlap, as published ones do."""
    root = tmp_path_factory.mktemp("data") / "play"
    rng = np.random.default_rng(0)
    for split, lengths in LENGTHS.items():
        writer = CalvinWriter(root, split)  # type: ignore[arg-type]
        for number, length in enumerate(lengths):
            labels = [Label("open_drawer", "open the drawer", 0, length - 1, "pull")]
            labels += [Label("push", "push: the block, “left”", 2, 4)] * (number == 1)
            writer.write_recording(recording(rng, length), first_frame=16 * number, scene="B", labels=labels)
        writer.finish()
    return root


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """run(source, name, format, ...) converts and returns the folder."""

    def start(source: Path, name: str, form: Any, **options: Any) -> Path:
        convert(ConvertConfig(in_=str(source), out=str(tmp_path / name), format=form, **options))
        return tmp_path / name

    return start


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
