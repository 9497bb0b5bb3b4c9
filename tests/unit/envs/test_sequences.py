from __future__ import annotations

import json

import numpy as np
import pytest

from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.oracle import load_tasks
from vw2_robot.envs.scene import SCENES
from vw2_robot.envs.sequences import (
    CHAINS_FILE,
    TASKS,
    all_initial_states,
    chains_per_state,
    fnv_of,
    make_sequences,
    possible_chains,
    sample_chains,
    start_state,
)
from vw2_robot.errors import InputError


def test_the_hash_is_the_references_and_not_the_textbooks() -> None:
    assert fnv_of("hello world") == 3799943344
    assert fnv_of("dict_values([1, 1, 'left', 'open', 'slider_left', 'table', 'slider_right', 0])") == 2138410836


def test_the_first_chain_is_the_one_of_published_logs() -> None:
    (first,) = make_sequences(1)
    assert first.number == 0
    assert first.subtasks == (
        "rotate_blue_block_right",
        "move_slider_right",
        "lift_red_block_slider",
        "place_in_slider",
        "turn_off_lightbulb",
    )


def test_fewer_chains_are_the_first_of_all_chains() -> None:
    everything = make_sequences()
    assert len(everything) == 1000
    assert make_sequences(7) == everything[:7]
    assert [sequence.number for sequence in everything] == list(range(1000))


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_more_chains_than_there_are_cannot_be_had(count: int) -> None:
    with pytest.raises(InputError, match="choose 1 to 1000"):
        make_sequences(count)


def test_a_chain_sampled_anew_is_the_stored_one() -> None:
    stored = json.loads(CHAINS_FILE.read_text())
    assert [len(chains) for chains in stored] == chains_per_state() == [6] * 40 + [5] * 152
    for number in (0, 100):
        assert sample_chains(number) == stored[number]


def test_other_seeds_have_chains_of_their_own_from_the_same_protocol() -> None:
    others = make_sequences(seed=1)
    assert make_sequences(7, seed=1) == others[:7]
    assert [sequence.number for sequence in others] == list(range(1000))
    starts = [[str(sequence.initial_state) for sequence in chains] for chains in (make_sequences(), others)]
    assert sorted(starts[0]) == sorted(starts[1])
    assert starts[0] != starts[1]
    known = {(str(sequence.initial_state), sequence.subtasks) for sequence in make_sequences()}
    assert sum((str(sequence.initial_state), sequence.subtasks) in known for sequence in others) < 5
    # The protocol's rejection sampling accepts nothing else, and each of these with the same probability.
    stored = json.loads(CHAINS_FILE.read_text())
    for state, chains in list(zip(all_initial_states(), stored, strict=True))[::64]:
        possible = possible_chains(state)
        assert len(set(possible)) == len(possible)
        assert {tuple(chain) for chain in chains} <= set(possible)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_chain_can_be_done_and_mixes_five_categories(seed: int) -> None:
    for sequence in make_sequences(seed=seed):
        state = sequence.initial_state
        for name in sequence.subtasks:
            after = TASKS[name].apply(state)
            assert after is not None, (sequence.number, name)
            state = after
        assert len({TASKS[name].category for name in sequence.subtasks}) == 5


def test_a_task_with_two_possible_outcomes_is_not_possible() -> None:
    (state,) = (
        state
        for state in all_initial_states()
        if state["red_block"] == state["blue_block"] == "table"
        and (state["pink_block"], state["led"], state["lightbulb"]) == ("slider_left", 0, 0)
        and (state["slider"], state["drawer"]) == ("right", "open")
    )
    held = TASKS["lift_pink_block_slider"].apply(state)
    assert held is not None
    assert held["pink_block"] == "grasped"
    assert TASKS["stack_block"].apply(held) is None  # on red or on blue?
    assert TASKS["push_into_drawer"].apply(state) is None  # the other two are not both on the shelf
    placed = TASKS["place_in_slider"].apply(held)
    assert placed is not None
    assert placed["pink_block"] == "slider_right"  # named after the door's side, as the benchmark does


def test_tasks_mean_the_same_in_chains_oracle_and_instructions() -> None:
    assert list(TASKS) == list(load_tasks())
    validation, training = load_instructions("validation"), load_instructions("train")
    assert set(validation) == set(training) == set(TASKS)
    assert all(len(texts) == 1 for texts in validation.values())
    assert sum(len(texts) for texts in training.values()) == 389
    with pytest.raises(InputError, match="unknown split 'test'"):
        load_instructions("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("scene", SCENES)
def test_a_start_state_holds_the_numbers_of_its_symbols(scene: str) -> None:
    for state in all_initial_states()[::17]:
        _, scene_obs = start_state(state, scene)
        assert scene_obs[0] == (SCENES[scene].slide_range if state["slider"] == "left" else 0)
        assert (scene_obs[1] > 0) == (state["drawer"] == "open")
        assert scene_obs[4] == (scene_obs[3] > 0) == state["lightbulb"]
        assert scene_obs[5] == state["led"]
        for name, pose in zip(SCENES[scene].block_order, scene_obs[6:].reshape(3, 6), strict=True):
            low, high = SCENES[scene].surfaces[state[f"{name.removeprefix('block_')}_block"]]
            assert np.all(pose[:2] >= np.array(low[:2]) - 0.02)
            assert np.all(pose[:2] <= np.array(high[:2]) + 0.02)


def test_an_impossible_start_state_is_refused() -> None:
    state = dict(all_initial_states()[0])
    with pytest.raises(InputError, match="slider must be one of"):
        start_state({**state, "slider": "middle"})
    with pytest.raises(InputError, match="one or two blocks on the table"):
        start_state({**state, "red_block": "slider_left", "blue_block": "slider_left", "pink_block": "table"})
    with pytest.raises(InputError, match="unknown scene 'E'"):
        start_state(state, "E")
