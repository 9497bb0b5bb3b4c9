"""Done-when: however an evaluation is scheduled, every chain ends the same, to the last bit of the last action.

Forty chains in the real simulator, three policies, 1, 2 and 4 workers, fifty kills, three shards. Minutes: slow.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.config import RolloutConfig
from vw2_robot.rollouts.merge import merge
from vw2_robot.rollouts.results import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.sim]

CHAINS, KILLS, MAX_STEPS = 40, 50, 90
WORLD = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "max_steps": MAX_STEPS}


@pytest.fixture(scope="module", params=["demonstrator", "replay", "checkpoint"])
def policy(request, checkpoint, tmp_path_factory):
    """A name for `policy=`, and the folder of a rollout with one worker."""
    folder = tmp_path_factory.mktemp(request.param)
    name = str(checkpoint) if request.param == "checkpoint" else "demonstrator"
    if request.param == "replay":
        run(folder / "recorded", name)
        name = str(folder / "recorded")
    run(folder / "one", name)
    return name, folder / "one"


def settings(folder, policy, **changes):
    chosen = {"num_sequences": CHAINS, "videos": 0, "record": True, "retries": KILLS, **changes}
    return RolloutConfig(policy=policy, env=WORLD, run_dir=str(folder), **chosen)


def run(folder, policy, **changes):
    return rollout(settings(folder, policy, **changes))


def assert_same(one: Path, other: Path) -> None:
    """The same rows, and the same bits of every answer of the policy."""
    assert len(read_rows(one / "results.jsonl")) == CHAINS
    names = ["results.jsonl", *(f"actions/{file.name}" for file in sorted((one / "actions").iterdir()))]
    assert len(names) == CHAINS + 1
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []


def test_the_policies_do_different_things(policy):
    _, one = policy
    rows = read_rows(one / "results.jsonl")
    assert len({tuple(row["steps"]) for row in rows}) > 1 or (one.parent.name.startswith("checkpoint"))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_show(policy, tmp_path, workers):
    name, one = policy
    run(tmp_path / "many", name, workers=workers)
    assert_same(one, tmp_path / "many")


def test_fifty_random_kills_do_not_show(policy, tmp_path):
    name, one = policy
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        draw = random.Random(0)
        while len(killed) < KILLS and not stop.wait(draw.expovariate(1 / 1.5)):
            crew = [child for child in multiprocessing.active_children() if child.name.startswith("rollout worker")]
            if crew:
                victim = draw.choice(crew)
                assert victim.pid is not None
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)

    reaper = threading.Thread(target=kill)
    reaper.start()
    rounds = 0
    while len(killed) < KILLS:  # a round may end before all have struck: then another one begins
        run(tmp_path / f"killed{rounds}", name, workers=4)
        assert_same(one, tmp_path / f"killed{rounds}")
        rounds += 1
    stop.set()
    reaper.join()
    assert len(killed) == KILLS


def test_three_shards_merged_do_not_show(policy, tmp_path):
    name, one = policy
    for number in range(3):
        run(tmp_path / "parts", name, shard=f"{number}/3", workers=1 + number % 2)
    merge(tmp_path / "parts")
    assert_same(one, tmp_path / "parts")


@pytest.mark.parametrize("victim", ["the program", "the policy process"])
def test_a_program_that_is_killed_again_and_again_goes_on(checkpoint, tmp_path, victim):
    """From outside, as a user or a machine that runs out of memory would do it."""
    run(tmp_path / "one", str(checkpoint))
    words = [f"policy={checkpoint}", f"num_sequences={CHAINS}", "videos=0", "record=true", f"env.max_steps={MAX_STEPS}"]
    command = [sys.executable, "-m", "vw2_robot.rollouts", *words, "workers=2", f"run_dir={tmp_path / 'many'}"]
    draw = random.Random(1)
    said = ""
    for _ in range(5):
        rows = len(read_rows(tmp_path / "many/results.jsonl"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(read_rows(tmp_path / "many/results.jsonl")) < rows + 3:
            time.sleep(0.2)
        time.sleep(draw.random())
        if process.poll() is None:
            os.kill(process.pid if victim == "the program" else child_of(process.pid), signal.SIGKILL)
        said += process.communicate()[1]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(tmp_path / "one", tmp_path / "many")
    if victim == "the policy process":
        assert "the policy process died with exit code -9; finished chains are kept" in said
        assert "Traceback" not in said


def child_of(pid: int) -> int:
    """The policy process: the first process that the program started, but for Python's own resource tracker."""
    children = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return min(n for n in children if "resource_tracker" not in Path(f"/proc/{n}/cmdline").read_text())
