"""Shards as a cluster runs them: Hydra's multirun starts each as a job of its own."""

import subprocess
import sys

import pytest

OVERRIDES = ["policy=random", "num_sequences=3", "videos=0", "record=true", "env.max_steps=3"]


@pytest.mark.sim
@pytest.mark.slow
def test_a_multirun_of_shards_ends_as_the_rollout_without(tmp_path):
    command = [sys.executable, "-m", "vw2_robot.rollouts"]
    jobs = ["--multirun", f"hydra.sweep.dir={tmp_path / 'jobs'}", "shard=0/2,1/2", f"run_dir={tmp_path / 'parts'}"]
    for overrides in ([f"run_dir={tmp_path / 'whole'}"], jobs):
        subprocess.run([*command, *overrides, *OVERRIDES], check=True, capture_output=True)
    names = ["results.jsonl", *(f"actions/chain_{number:04d}.npz" for number in range(3))]
    assert [(tmp_path / "parts" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]
