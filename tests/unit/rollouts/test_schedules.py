"""Done-when: however an evaluation is scheduled, every chain ends the same, to the last bit of the last action.

Forty chains in the real simulator, three policies, 1, 2 and 4 workers, fifty kills, three shards. Minutes: slow.
benchmarks/schedules.py does the work, and does it for 200 chains by hand; the files are compared here.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.config import RolloutConfig
from vw2_robot.rollouts.results import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.sim]

ROOT = Path(__file__).resolve().parents[3]
CHAINS, MAX_STEPS, KILLS = 40, 45, 17  # 17 for each of three policies
SCHEDULES = {"1 worker", "2 workers", "4 workers", "4 workers, kills", "3 shards, merged"}


@pytest.mark.parametrize(("policies", "max_steps"), [(("demonstrator", "replay"), MAX_STEPS), (("CHECKPOINT",), 24)])
def test_no_schedule_shows_in_the_results(policies, max_steps, checkpoint, tmp_path):
    names = [str(checkpoint) if name == "CHECKPOINT" else name for name in policies]
    arguments = ["--policies", *names, "--chains", str(CHAINS), "--max-steps", str(max_steps), "--kills", str(KILLS)]
    command = [sys.executable, "-m", "benchmarks.schedules", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    entries = json.loads((tmp_path / "schedules.json").read_text())
    for number in range(len(policies)):
        runs = [entry for entry in entries if Path(entry["folder"]).parent.name == f"policy_{number}"]
        assert {entry["schedule"] for entry in runs} == SCHEDULES
        assert sum(entry["kills"] for entry in runs) == KILLS
        for entry in runs[1:]:
            assert_same(Path(runs[0]["folder"]), Path(entry["folder"]), chains=CHAINS)
        rows = read_rows(Path(runs[0]["folder"]) / "results.jsonl")
        assert len({row["solved"] for row in rows}) > 2 or policies == ("CHECKPOINT",)  # chains really end differently
        assert len({entry["rows"] for entry in runs}) == len({entry["answers"] for entry in runs}) == 1
    assert (tmp_path / "policy_0/log.txt").read_text().count("died with exit code -9") > KILLS / 2


def assert_same(one: Path, other: Path, *, chains: int) -> None:
    """The same rows, and the same bits of every answer of the policy."""
    assert len(read_rows(one / "results.jsonl")) == chains
    names = ["results.jsonl", *(f"actions/{file.name}" for file in sorted((one / "actions").iterdir()))]
    assert len(names) == chains + 1
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []


@pytest.mark.parametrize("victim", ["the program", "the policy process"])
def test_a_program_that_is_killed_again_and_again_goes_on(checkpoint, tmp_path, victim):
    """From outside, as a user or a machine that runs out of memory would do it."""
    world = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "max_steps": MAX_STEPS}
    fixed = {"policy": str(checkpoint), "num_sequences": 64, "videos": 0, "record": True}
    rollout(RolloutConfig(env=world, run_dir=str(tmp_path / "one"), **fixed))
    overrides = [*(f"{key}={value}" for key, value in fixed.items()), f"env.max_steps={MAX_STEPS}", "workers=2"]
    command = [sys.executable, "-m", "vw2_robot.rollouts", *overrides, f"run_dir={tmp_path / 'many'}"]
    rng = random.Random(1)
    errors = ""
    for _ in range(2):
        rows = len(read_rows(tmp_path / "many/results.jsonl"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(read_rows(tmp_path / "many/results.jsonl")) < rows + 3:
            time.sleep(0.2)
        time.sleep(rng.random())
        if process.poll() is None:
            os.kill(process.pid if victim == "the program" else child_of(process.pid), signal.SIGKILL)
        errors += process.communicate()[1]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(tmp_path / "one", tmp_path / "many", chains=64)
    if victim == "the policy process":
        assert re.search("the policy process died with exit code -9 .*; finished chains are kept", errors)
        assert "Traceback" not in errors


def child_of(pid: int) -> int:
    """The policy process: the first process that the program started, but for Python's own resource tracker."""
    children = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return min(n for n in children if "resource_tracker" not in Path(f"/proc/{n}/cmdline").read_text())
