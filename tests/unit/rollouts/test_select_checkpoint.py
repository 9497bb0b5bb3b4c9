"""Selection of a checkpoint by rollouts on tuning starts."""

import importlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import resolve
from vw2_robot.errors import InputError
from vw2_robot.rollouts.results import read_rows
from vw2_robot.rollouts.select_checkpoint import SUMMARY_KEYS, SelectConfig, lines, select
from vw2_robot.storage.files import read_json

ALWAYS_RIGHT, ALWAYS_WRONG = 2.5, -2.5  # the counting world wants a positive first entry


@pytest.fixture
def run(counting_world, tmp_path):
    """A run folder that kept steps 2 and 4 and ended at 6; the middle one is the best."""
    save = importlib.import_module("tiny_policy").save_tiny_policy
    run = tmp_path / "finetune"
    for place, step, shift in (("kept", 2, ALWAYS_WRONG), ("kept", 4, ALWAYS_RIGHT), ("checkpoints", 6, ALWAYS_WRONG)):
        save(run / place, shift=shift, step=step)
    (run / "latest").write_text("step_6\n")
    return run


@pytest.fixture
def selection(config, run):
    """Makes the configuration of a selection in that run."""

    def make(**changes):
        options = asdict(
            config(protocol="chain", num_sequences=2, sequences_seed=1, device="cpu", env={"max_steps": 5})
        )
        place = {"policy": str(run), "run_dir": str(run / "selection"), "starts_seed": 1}
        return SelectConfig(**{**options, **place, **changes})

    return make


def test_the_best_checkpoint_stands_for_the_run_and_the_later_one_of_equals(selection, run):
    assert resolve(run).name == "step_6"
    found = select(selection())
    assert [one["average_length"] for one in found["checkpoints"]] == [0.0, 5.0, 0.0]
    assert resolve(run) == run / "kept/step_4"
    agent = VW2Agent.from_pretrained(str(run))
    assert agent.metadata["policy_hash"] == found["checkpoints"][1]["policy_hash"]
    assert read_json(run / "selection/selection.json", cure="", sealed=True) == found
    assert (found["selected"], found["seed"]) == ("kept/step_4", 1)
    assert [row["subtasks"][0] for row in read_rows(run / "selection/step_4/results.jsonl")] == ["close", "push"]
    table = lines(found)
    assert [line.split()[:2] for line in table[1:4]] == [
        ["kept/step_2", "0.000"],
        ["kept/step_4", "5.000"],
        ["checkpoints/step_6", "0.000"],
    ]
    assert table[2].endswith("selected")
    assert "the best of 3 is biased upward" in table[-1]


def test_a_selection_goes_on_where_it_was_stopped_and_takes_the_later_one_of_equals(selection, run, monkeypatch):
    rolled_out = []
    summary = {"num_sequences": 2, "average_length": 1.0, **dict.fromkeys(SUMMARY_KEYS[2:4]), "policy_hash": None}

    def stop_at_the_last(config):
        rolled_out.append(config.policy.rpartition("/")[2])
        if len(rolled_out) == 3:
            raise KeyboardInterrupt
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        return summary | {"average_length_ci95": [0.5, 1.5]}

    monkeypatch.setattr("vw2_robot.rollouts.select_checkpoint.rollout", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        select(selection())
    assert not (run / "selected").exists()
    assert not (run / ".lock").exists()
    assert select(selection())["selected"] == "checkpoints/step_6"
    assert rolled_out == ["step_2", "step_4", "step_6"] * 2


def test_what_cannot_be_selected_from_is_refused(selection, run):
    for change in ({"sequences_seed": 0}, {"starts_seed": 0}, {"shard": "0/2"}, {"merge": True}, {"against": "x"}):
        (key,) = change
        with pytest.raises(ValueError, match=key):
            selection(**change)
    single = replace(selection(), protocol="single").rollout_of(run / "kept/step_2")
    assert (single.sequences_seed, single.starts_seed, single.policy) == (0, 1, str(run / "kept/step_2"))
    with pytest.raises(InputError, match=r"step_6 has 0 checkpoints, expected several; train with loop\.keep_every"):
        select(selection(policy=str(run / "checkpoints/step_6")))
