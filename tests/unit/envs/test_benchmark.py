from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
from omegaconf import OmegaConf

from vw2_robot.contracts import Benchmark
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.physics import pybullet_version
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

CONFIG = Path(__file__).parents[3] / "configs/env/calvin.yaml"
STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture
def benchmark_() -> Iterator[CalvinBenchmark]:
    benchmark = CalvinBenchmark()
    yield benchmark
    benchmark.close()


def test_the_config_builds_the_published_benchmark() -> None:
    built: Benchmark = hydra.utils.instantiate(OmegaConf.load(CONFIG))
    assert isinstance(built, CalvinBenchmark)
    assert built.max_steps == 360
    assert built.control_hz == 30
    settings = {key: built.metadata[key] for key in ("scene", "assets", "renderer", "renderer_version", "reset_mode")}
    assert settings == {
        "scene": "D",
        "assets": "builtin",
        "renderer": "layered",
        "renderer_version": 2,
        "reset_mode": "exact",
    }
    assert set(built.metadata["versions"]) == {"vw2_robot", *pybullet_version(), "gymnasium", "numpy"}
    built.close()


def test_a_policy_sees_the_static_image_and_the_instruction_only(benchmark_: CalvinBenchmark) -> None:
    (sequence,) = benchmark_.sequences(1)
    benchmark_.reset(sequence)
    benchmark_.begin(sequence.subtasks[0])
    observation = benchmark_.observe()
    assert set(observation) == {"images", "prompt"}
    assert set(observation["images"]) == {"static"}
    assert observation["images"]["static"].shape == (200, 200, 3)
    assert (
        observation["prompt"]
        == benchmark_.instruction(sequence.subtasks[0])
        == "take the blue block and rotate it to the right"
    )


def test_stepping_renders_nothing(benchmark_: CalvinBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(CalvinBenchmark, "observe", refuse)
    monkeypatch.setattr(type(benchmark_.env), "render_camera", refuse)
    benchmark_.reset(benchmark_.sequences(1)[0])
    benchmark_.begin("open_drawer")
    assert benchmark_.step(STILL) is False


def test_a_subtask_counts_from_its_begin_and_only_if_requested(benchmark_: CalvinBenchmark) -> None:
    sequence = next(s for s in benchmark_.sequences(50) if s.initial_state["drawer"] == "closed")
    benchmark_.reset(sequence)
    env = benchmark_.env
    for task, solved in [("turn_on_led", False), ("open_drawer", True)]:
        benchmark_.reset(sequence)
        benchmark_.begin(task)
        assert benchmark_.step(STILL) is False
        env.scene._set_joint("base__drawer", 0.2)
        assert benchmark_.step(STILL) is solved
    benchmark_.begin("open_drawer")
    assert benchmark_.step(STILL) is False  # it was open already


def test_a_chain_does_not_depend_on_the_chain_before(benchmark_: CalvinBenchmark) -> None:
    first, second = benchmark_.sequences(2)

    def run(sequence: Any) -> Any:
        benchmark_.reset(sequence)
        benchmark_.begin(sequence.subtasks[0])
        for _ in range(10):
            benchmark_.step(np.array([0.3, 0.2, -1, 0, 0, 0.1, -1]))
        return benchmark_.env.scene_obs()

    alone = run(first)
    run(second)
    np.testing.assert_array_equal(run(first), alone)


def test_misuse_is_reported_plainly(benchmark_: CalvinBenchmark) -> None:
    benchmark_.reset(benchmark_.sequences(1)[0])
    with pytest.raises(RuntimeError, match="begin"):
        benchmark_.observe()
    with pytest.raises(InputError, match="unknown task 'fly'"):
        benchmark_.begin("fly")
    with pytest.raises(InputError, match="max_steps must be at least 1, found 0"):
        CalvinBenchmark(max_steps=0)
