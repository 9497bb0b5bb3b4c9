"""The protocol's variants through the whole program: other scenes, unseen sentences, a world of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.config import RolloutConfig
from vw2_robot.rollouts.results import read_rows

CALVIN = "vw2_robot.envs.benchmark.CalvinBenchmark"


@pytest.mark.sim
@pytest.mark.parametrize("scene", ["A", "B", "C"])
def test_the_chains_run_in_every_scene_and_can_be_asked_for_in_unseen_words(tmp_path, scene):
    from vw2_robot.envs.instructions import read_instructions

    world = {"_target_": CALVIN, "scene": scene, "instructions": "enriched"}
    options = {"num_sequences": 1, "videos": 0}
    summary = rollout(RolloutConfig(policy="demonstrator", env=world, run_dir=str(tmp_path), **options))
    assert (summary["env"]["scene"], summary["env"]["instructions"]) == (scene, "enriched")
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert row["solved"] >= 3
    enriched = read_instructions("enriched")
    for task, sentence in zip(row["subtasks"], row["instructions"], strict=False):
        assert sentence in enriched[task]
        assert sentence not in read_instructions("validation")[task]


@pytest.mark.sim
def test_single_tasks_run_in_the_simulator_and_are_counted_by_task(tmp_path):
    world = {"_target_": CALVIN, "max_steps": 150}
    options = {"protocol": "single", "rollouts_per_task": 1, "sequences": [6000, 8000, 10000], "videos": 0}
    summary = rollout(RolloutConfig(policy="demonstrator", env=world, run_dir=str(tmp_path), **options))
    assert (summary["num_sequences"], summary["chain_length"]) == (3, 1)
    assert [counts["attempted"] for counts in summary["per_task"].values()] == [1, 1, 1]
    assert summary["success_rates"][0] == sum(counts["solved"] for counts in summary["per_task"].values()) / 3


def test_another_benchmark_needs_a_yaml_file_only(counting_world, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    (tmp_path / "env").mkdir()
    (tmp_path / "env/mine.yaml").write_text("_target_: counting_world.CountingBenchmark\nknows: [open, close]\n")
    overrides = ["env=mine", "policy=demonstrator", "num_sequences=6", "videos=0", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "vw2_robot.rollouts", "--config-dir", str(tmp_path), *overrides]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["env"]["scene"] == "count"
    assert [row["solved"] for row in read_rows(tmp_path / "run/results.jsonl")] == [2, 1, 0, 0, 0, 2]
