"""Meta-World with its real package: starts, images, experts, recordings; the choice of an OpenGL needs no package."""

from __future__ import annotations

import ctypes.util
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import CALVIN_ACTIONS
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.meta_world import META_WORLD_ACTIONS, rendering
from vw2_robot.envs.meta_world.rendering import OffscreenCamera, load_mujoco
from vw2_robot.envs.recording.config import RecordConfig
from vw2_robot.envs.recording.record import record
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.rollouts.config import open_benchmark
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.rollouts.random_policy import RandomPolicy

ENV = {
    "_target_": "vw2_robot.envs.meta_world.benchmark.MetaWorldBenchmark",
    "tasks": {"drawer-open-v3": "open the drawer", "button-press-topdown-v3": "press the button"},
    "camera": "corner2",
    "image_size": 32,
    "max_steps": 150,
}
needs_meta_world = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="metaworld is not installed (the extra metaworld)"
)


def renders(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test that renders in a process of its own where another test has imported TensorFlow already."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        if "tensorflow" not in sys.modules:
            return test(**arguments)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", f"{__file__}::{test.__name__}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout
        return None

    return run


@pytest.fixture(scope="module")
def benchmark() -> Any:
    opened = open_benchmark(ENV)
    yield opened
    opened.close()


@needs_meta_world
@renders
def test_start_and_image_depend_on_the_episode_alone(benchmark: Any) -> None:
    chains = benchmark.sequences(3)
    assert [chain.subtasks for chain in chains] == [
        ("drawer-open-v3",),
        ("button-press-topdown-v3",),
        ("drawer-open-v3",),
    ]

    def start(chain: Any) -> Any:
        benchmark.reset(chain)
        for _ in range(3):
            benchmark.step(np.array([0.5, 0.5, -0.5, 1.0]))
        return benchmark.state.copy(), benchmark.observe()["images"]["corner2"].copy()

    first, second, third = map(start, chains)
    assert first[1].shape == (32, 32, 3)
    for again, before in zip(start(chains[0]), first, strict=True):
        np.testing.assert_array_equal(again, before)
    assert not np.array_equal(first[0], third[0])
    assert np.abs(first[1].astype(int) - second[1]).mean() > 1
    assert start(benchmark.sequences(1, seed=1)[0])[0].tolist() != first[0].tolist()


@needs_meta_world
def test_experts_solve_their_tasks_and_chance_does_not(benchmark: Any) -> None:
    chains = benchmark.sequences(2)
    assert benchmark.action_space == META_WORLD_ACTIONS
    rows = evaluate(benchmark.expert(), benchmark, chains)
    assert [row["solved"] for row in rows] == [1, 1]
    assert max(row["env_steps"][0] for row in rows) < 120
    random = RandomPolicy(names=META_WORLD_ACTIONS.names)
    assert [row["solved"] for row in evaluate(random, benchmark, chains)] == [0, 0]
    with pytest.raises(InputError, match=r"actions of 7 .* the environment takes 4 \(dx, dy, dz, gripper_effort\)"):
        evaluate(RandomPolicy(names=CALVIN_ACTIONS.names), benchmark, chains)


@needs_meta_world
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize("tensorflow_first", [False, True])
def test_images_and_tensorflow_in_one_process(tensorflow_first: bool) -> None:
    """TensorFlow's newer versions and Mesa end it with a segmentation fault unless somebody takes care."""
    program = f"""
import tensorflow_datasets
from vw2_robot.data.sources.rlds_builder import load_tensorflow
from vw2_robot.rollouts.config import open_benchmark
if {tensorflow_first}:
    load_tensorflow()
benchmark = open_benchmark({ENV!r})
for _ in range(2):
    benchmark.reset(benchmark.sequences(1)[0])
    assert benchmark.observe()["images"]["corner2"].std() > 1
    tf, _ = load_tensorflow()
    assert [int(number) for number in tf.data.Dataset.range(2).map(lambda number: number + 1)] == [1, 2]
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if tensorflow_first and result.returncode:
        assert re.search(r"InputError: TensorFlow 2\S+ was imported .* render in a process of its own", result.stderr)
    else:
        assert result.returncode == 0, result.stderr


@needs_meta_world
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"drawer-open": "x"}}, "unknown task 'drawer-open'; nearest: drawer-open-v3"),
        ({"camera": "corner9"}, "unknown camera"),
        ({"max_steps": 501}, "expected 1 to 500"),
    ],
)
def test_unknown_names_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_benchmark(ENV | change)


@needs_meta_world
@renders
def test_recording_states_its_robot_and_holds_the_experts_commands(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "recorded"
    config = config_from(
        RecordConfig, {"out": str(out), "env": ENV, "episodes": 1, "tasks": "button-press-topdown-v3", "tail_steps": 2}
    )
    record(config)
    dataset = CalvinDataset(out)
    assert (dataset.robot.hz, dataset.robot.camera, dataset.robot.action) == (80.0, "corner2", META_WORLD_ACTIONS)
    (trajectory,) = dataset.trajectories
    assert (trajectory.task, trajectory.instruction) == ("button-press-topdown-v3", "press the button")
    actions = dataset.read_actions(trajectory)
    images = dataset.read_images(trajectory)
    assert actions.shape == (trajectory.length, 4)
    assert np.abs(actions).max() <= 1
    assert images.shape == (trajectory.length, 32, 32, 3)
    assert np.abs(images[0].astype(int) - images[-1]).max() > 50
    card = (out / "README.md").read_text(encoding="utf-8")
    assert META_WORLD_ACTIONS.units in card
    assert "license: mit" in card
    # The same start, pushed about; images cost most of the time and are left out.
    monkeypatch.setattr(OffscreenCamera, "render", lambda self, data: np.zeros((32, 32, 3), np.uint8))
    pushed = replace(config, out=str(tmp_path / "pushed"), perturbations=0.1)
    record(pushed)
    assert not np.array_equal(
        CalvinDataset(pushed.out).read_actions(CalvinDataset(pushed.out).trajectories[0]), actions
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": True}, "one camera"),
        ({"failed_attempts": 0.1}, "has no play, max_window, failed_attempts"),
        ({"tasks": "reach-v3"}, "unknown task 'reach-v3'; known: drawer-open-v3"),
    ],
)
def test_recording_refuses_what_only_calvin_has(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, InputError), match=message):
        config_from(RecordConfig, {"out": "x", "env": ENV} | change).task_names()


def test_opengl_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo binds it at its import, so the variable must be right before."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")  # so that it is put back at the end
    for name in [name for name in sys.modules if name.split(".")[0] == "mujoco"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(rendering, "require", lambda name, extra: (name, extra))
    for libraries, chosen in ((("EGL", "OSMesa"), "egl"), (("OSMesa",), "osmesa")):
        monkeypatch.setattr(ctypes.util, "find_library", lambda name, there=libraries: name if name in there else None)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        assert load_mujoco() == ("mujoco", "metaworld")
        assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    load_mujoco()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(InputError, match=r"no EGL and no OSMesa; install EGL with a driver .* or set MUJOCO_GL"):
        load_mujoco()


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is not None, reason="metaworld is installed")
def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(MissingExtraError, match=r"\[metaworld\]"):
        open_benchmark(ENV)
