"""The chains and start states are those of the benchmark (conformance level L2)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.envs.sequences import CHAINS_FILE, all_initial_states, fnv_of, make_sequences, sample_chains, start_state


def test_the_thousand_chains_are_the_published_ones(calvin_dir: Path) -> None:
    published = json.loads((calvin_dir / "eval_sequences_1000.json").read_text())
    made = [
        {"initial_state": sequence.initial_state, "subtasks": list(sequence.subtasks)} for sequence in make_sequences()
    ]
    assert json.dumps(made) == json.dumps(published)  # as text: the order of keys counts, too


def test_the_192_start_states_are_the_published_ones(calvin_dir: Path) -> None:
    published = json.loads((calvin_dir / "eval_initial_states.json").read_text())
    states = {json.dumps(state) for state in all_initial_states()}
    assert len(published["states"]) == len(states) == 192
    for entry in published["states"]:
        robot_obs, scene_obs = start_state(entry["initial_state"])
        np.testing.assert_array_equal(robot_obs, published["robot_obs"])
        np.testing.assert_allclose(scene_obs, entry["scene_obs"], rtol=0, atol=1e-12)
        assert fnv_of(str(entry["initial_state"].values())) == entry["seed"]
        assert json.dumps(entry["initial_state"]) in states


@pytest.mark.slow
def test_all_chains_sampled_anew_are_the_stored_ones() -> None:
    stored = json.loads(CHAINS_FILE.read_text())
    assert [sample_chains(number) for number in range(192)] == stored
