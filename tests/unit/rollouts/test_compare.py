"""Two rollouts on the same chains."""

import dataclasses
import json

import pytest

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.compare import CompareConfig, EarlyStopping, compare, lines, main
from vw2_robot.rollouts.report.run_folders import discover
from vw2_robot.rollouts.report.side_by_side import comparisons
from vw2_robot.rollouts.results import append_row, different_problems, read_rows

TASKS = ["open", "close", "push", "lift", "turn"]


def row(number, solved):
    steps = [3] * min(solved + 1, 5)
    return {"sequence": number, "initial_state": {}, "subtasks": TASKS, "solved": solved, "env_steps": steps, "seed": 0}


def test_a_comparison_against_a_hand_made_answer():
    ours = [row(0, 5), row(1, 2), row(2, 1), row(7, 5)]
    base = [row(2, 1), row(1, 3), row(0, 1), row(8, 0)]
    result = compare(ours, base)
    assert (result["chains"], result["wins"], result["ties"], result["losses"]) == (3, 1, 1, 1)
    assert result["mean_difference"] == 1.0
    assert result["decision"] == "undecided"
    assert "3: 1 won, 1 equal, 1 lost" in lines(result)[0]
    assert "(run minus against)" in lines(result)[1]
    with pytest.raises(InputError, match="no finished chain in common"):
        compare(ours, [row(9, 1)])


def test_a_clear_difference_is_decided_before_all_chains_are_used():
    better = [row(n, 4) for n in range(100)]
    worse = [row(n, n % 3) for n in range(100)]
    result, mirrored = compare(better, worse), compare(worse, better)
    assert (result["decision"], mirrored["decision"]) == ("better", "worse")
    assert result["decided_after"] == mirrored["decided_after"] < 30
    assert result["sign_flip_p"] < 0.001


def test_a_decision_does_not_depend_on_the_order_in_which_rows_come(tmp_path):
    chains = [EvalSequence(n, {}, tuple(TASKS)) for n in range(60)]
    for number in range(60):
        append_row(tmp_path / "results.jsonl", {**row(number, 0), "instructions": []})
    stopping = EarlyStopping(tmp_path, chains, alpha=0.05)
    rows = [row(n, 4) for n in range(60)]
    used = stopping.rows_until_decision(rows)
    assert len(used) == compare(rows, stopping.base)["decided_after"]
    assert stopping.rows_until_decision(list(reversed(rows))) == used
    assert stopping.rows_until_decision(rows[: len(used)]) == used
    assert stopping.rows_until_decision(rows[: len(used) - 1]) is None
    assert stopping.rows_until_decision(rows[1:]) is None  # the first chain is still under way


@pytest.mark.parametrize("workers", [1, 3])
def test_a_rollout_stops_once_it_is_better_and_says_so(config, tmp_path, workers, capsys):
    many = {"chains": 80, "max_steps": 4}
    rollout(config("base", num_sequences=80, env={**many, "knows": ["close"]}))
    again = config(
        "new", num_sequences=80, env={**many, "knows": TASKS}, against=str(tmp_path / "base"), workers=workers
    )
    summary = rollout(again)
    comparison = json.loads((tmp_path / "new/comparison.json").read_text())
    assert comparison["decision"] == "better"
    assert summary["num_sequences"] == comparison["decided_after"] < 40
    assert [r["sequence"] for r in read_rows(tmp_path / "new/results.jsonl")] == list(range(summary["num_sequences"]))
    assert "sequential test    better, after" in capsys.readouterr().out
    assert rollout(again)["num_sequences"] == summary["num_sequences"]  # started again: nothing more to do
    assert "is not finished" not in (tmp_path / "new/report.html").read_text(encoding="utf-8")


def test_chains_of_different_seeds_are_no_pairs(config, tmp_path):
    rollout(config("base"))
    rollout(config("other", sequences_seed=5))  # the counting world has the same subtasks again
    folders = {"run": str(tmp_path / "other"), "against": str(tmp_path / "base")}
    with pytest.raises(InputError, match=r"ran other problems, .*: sequences_seed 5 and 0; run both"):
        main(CompareConfig(**folders))
    with pytest.raises(InputError, match="ran other problems"):
        rollout(config("new", sequences_seed=5, against=str(tmp_path / "base")))
    _, rollouts = discover([tmp_path / "base", tmp_path / "other"])
    assert comparisons(rollouts)["entries"][0]["chains"] == 0


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"env": {"scene": "A", "assets": "builtin"}}, ["scene D and A"]),
        (
            {"env": {"scene": "D", "assets": "/data"}, "max_steps": 90},
            ["max_steps 360 and 90", "assets builtin and original"],
        ),
        ({"protocol": "single", "control_hz": 15.0}, ["protocol chain and single", "control_hz 30.0 and 15.0"]),
        ({"env": {"scene": "D", "renderer": "tiny", "reset_mode": "legacy", "instructions": "enriched"}}, []),
        ({}, []),  # rows of one's own loop need no description
    ],
)
def test_other_scenes_and_limits_are_other_problems(other, found):
    ours = {"max_steps": 360, "control_hz": 30.0, "env": {"scene": "D", "assets": "builtin", "renderer": "layered"}}
    assert different_problems(ours, other) == found
    assert different_problems({"env": {"assets": "a"}}, {"env": {"assets": "b"}}) == []


def test_early_stopping_needs_the_same_chains(config, tmp_path):
    rollout(config("base", num_sequences=3))
    with pytest.raises(InputError, match=r"has no result for chain 3 .*both rollouts must run the same chains"):
        rollout(config("new", against=str(tmp_path / "base")))
    with pytest.raises(ValueError, match="one shard has too few chains"):
        dataclasses.replace(config("new"), against="x", shard="0/2")
