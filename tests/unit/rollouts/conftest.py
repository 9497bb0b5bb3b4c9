"""The counting world as fixtures."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from vw2_robot.rollouts.config import RolloutConfig


@pytest.fixture(scope="module")
def counting_world():
    """The module `counting_world`, importable by name here and in processes started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("counting_world")
        sys.modules.pop("counting_world", None)


@pytest.fixture
def make_benchmark(counting_world):
    return counting_world.CountingBenchmark


@pytest.fixture
def make_policy(counting_world):
    return counting_world.ScriptedPolicy


@pytest.fixture
def benchmark(make_benchmark):
    return make_benchmark()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A policy folder as fine-tuning leaves it: tiny, untrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("tiny_policy").save_tiny_policy(tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="module")
def config_in(counting_world):
    """Makes configurations of rollouts in the counting world; chains 0..5 end after 2, 1, 0, 4, 3, 2 subtasks."""

    def make(folder, *, policy="demonstrator", env=(), **changes):
        world = {
            "_target_": "counting_world.CountingBenchmark",
            "knows": ["open", "close", "lift", "turn"],
            **dict(env),
        }
        chosen = {"num_sequences": 6, "videos": 0, **changes}
        return RolloutConfig(policy=policy, env=world, run_dir=str(folder), **chosen)

    return make


@pytest.fixture
def config(config_in, tmp_path):
    """The same, in a folder of the test."""
    return lambda folder="run", **options: config_in(tmp_path / folder, **options)
