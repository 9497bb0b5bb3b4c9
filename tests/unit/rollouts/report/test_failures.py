"""Where and when chains ended, against answers worked out by hand."""

import pytest

from vw2_robot.envs.sequences import make_sequences
from vw2_robot.rollouts.report.failures import (
    average_length_without,
    covered_chains,
    covered_request,
    endings,
    positions,
    step_histogram,
)


def row(number, subtasks, steps, *, solved):
    return {
        "sequence": number,
        "initial_state": {},
        "subtasks": subtasks,
        "solved": solved,
        "env_steps": steps,
        "seed": 0,
        "instructions": [],
    }


ROWS = [
    row(0, ["open", "lift", "close"], [10, 30, 20], solved=3),
    row(1, ["open", "lift", "close"], [12, 60], solved=1),
    row(2, ["lift", "open", "close"], [60], solved=0),
    row(3, ["open", "close", "lift"], [57, 60], solved=1),
]


def test_each_position_counts_the_chains_that_got_there():
    assert [tuple(position) for position in positions(ROWS)] == [(1, 4, 3), (2, 3, 1), (3, 1, 1)]
    assert positions([]) == []


def test_tasks_that_ended_chains_come_with_position_and_denominator():
    assert [tuple(one) for one in endings(ROWS)] == [("lift", 3, 2, [1, 1, 0], 30.0), ("close", 2, 1, [0, 1, 0], 20.0)]


def test_steps_of_solved_subtasks_are_counted_up_to_the_limit():
    steps = step_histogram(ROWS, limit=60)
    assert sum(steps.counts) == steps.solved == 5
    assert (steps.limit, steps.failed, steps.median, steps.late) == (60, 3, 20.0, 1)  # 57 > 54
    assert steps.counts[3] == 2  # 10 and 12 lie in [10, 13.3)
    assert step_histogram(ROWS[2:3], limit=60) is None


def test_the_limit_may_be_unknown():
    assert step_histogram(ROWS, limit=None).limit == 57


def test_five_of_calvins_chains_ask_for_a_covered_block_each_at_its_end():
    asking = {chain.number: covered_request(chain.subtasks) for chain in make_sequences()}
    assert {number: position for number, position in asking.items() if position is not None} == dict.fromkeys(
        (704, 771, 907, 954, 977), 4
    )


def test_a_door_moved_back_and_a_block_taken_out_uncover():
    put = ["lift_red_block_table", "place_in_slider", "move_slider_left"]
    assert covered_request([*put, "lift_red_block_slider"]) == 3
    assert covered_request([*put, "move_slider_right", "lift_red_block_slider"]) is None
    assert covered_request([*put, "lift_blue_block_slider"]) is None
    assert covered_request([*put, "lift_red_block_table", "move_slider_left"]) is None


@pytest.mark.parametrize(
    ("solved", "outcome"),
    [(5, "request solved"), (4, "ended at the request"), (2, "ended at subtask 3, before the request")],
)
def test_what_became_of_a_chain_that_asks_for_a_covered_block(solved, outcome):
    subtasks = ["lift_red_block_table", "place_in_slider", "turn_on_led", "move_slider_left", "lift_red_block_slider"]
    rows = [row(704, subtasks, [9] * min(5, solved + 1), solved=solved), row(3, subtasks[:4], [9], solved=0)]
    assert covered_chains(rows) == [{"number": 704, "request": "lift_red_block_slider", "outcome": outcome}]
    assert average_length_without(rows, [704]) == 0.0
    assert average_length_without(rows[:1], [704]) is None
