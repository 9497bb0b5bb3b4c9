"""summary.json against a recount that shares nothing with the code that wrote it: text in, counters out."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.progress import RolloutLog
from vw2_robot.storage.files import read_json


def recount(folder):
    """What summary.json must hold, from the lines of results.jsonl alone."""
    solved, tried, done, steps = [], Counter(), Counter(), 0
    for line in (folder / "results.jsonl").read_text().splitlines():
        entry = json.loads(line)
        won = 0
        for position, task in enumerate(entry["subtasks"]):
            tried[task] += 1
            steps += entry["env_steps"][position]
            if position == entry["solved"]:
                break
            done[task] += 1
            won += 1
        solved.append(won)
    return solved, tried, done, steps


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_summary_agrees_with_the_rows(config, tmp_path, seed):
    world = {"chains": 60, "max_steps": 9}
    summary = rollout(config(policy="random", num_sequences=60, seed=seed, workers=2, env=world))
    assert summary == read_json(tmp_path / "run/summary.json", cure="", sealed=True)
    solved, tried, done, steps = recount(tmp_path / "run")
    assert summary["num_sequences"] == len(solved) == 60
    assert summary["average_length"] == pytest.approx(math.fsum(solved) / 60)
    assert summary["success_rates"] == pytest.approx([sum(n > i for n in solved) / 60 for i in range(5)])
    assert summary["solved_histogram"] == [Counter(solved)[i] for i in range(6)]
    assert summary["per_task"] == {t: {"solved": done[t], "attempted": tried[t]} for t in sorted(tried)}
    assert summary["env_steps"] == steps
    for rate, (low, high) in zip(summary["success_rates"], summary["success_intervals95"], strict=True):
        for bound in (low, high):  # the defining equation of the Wilson interval, where it is not cut off at 0 or 1
            if 0 < bound < 1:
                assert (rate - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 60, rel=1e-4)


def test_after_fifty_chains_the_interval_is_logged_once(config, tmp_path, capsys):
    rollout(config(num_sequences=60, env={"chains": 60}))
    output = capsys.readouterr().out
    assert output.count("after 50 chains: average length 2.00 [") == 1
    assert "0:00:00 left" in output


def test_the_running_numbers_are_those_of_the_rows_so_far(tmp_path, capsys):
    log = RolloutLog(tmp_path, total=4, videos=0)
    row = {"initial_state": {}, "subtasks": ["a"] * 5, "seed": 0, "instructions": []}
    log.add({**row, "sequence": 3, "solved": 1, "env_steps": [1, 1]}, 2.0)
    assert log.success_text().startswith("average length 1.00 [0.")
    log.add({**row, "sequence": 1, "solved": 5, "env_steps": [1] * 5}, 2.0)
    assert log.success_text().endswith("success 1..5: 100 50 50 50 50 %")
    assert [one["sequence"] for one in log.rows] == [3, 1]
