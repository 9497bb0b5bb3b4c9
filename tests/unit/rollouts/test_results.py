import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.errors import InputError
from vw2_robot.rollouts import results

TASKS = ["a", "b", "c", "d", "e"]


def row(number, solved, tasks=TASKS):
    steps = [10] * solved + ([360] if solved < 5 else [])
    return {
        "sequence": number,
        "initial_state": {},
        "subtasks": list(tasks),
        "solved": solved,
        "env_steps": steps,
        "seed": 0,
        "instructions": [f"do {task}" for task in tasks[: len(steps)]],
    }


ROWS = [row(0, 5), row(1, 0), row(2, 2), row(3, 1)]
ORIGIN = {"policy": {"name": "p", "policy_hash": "abc", "label_fraction": 0.1}, "env": {"scene": "D"}, "seed": 0}


def test_a_summary_against_a_hand_made_answer():
    summary = results.summarize(ROWS, ORIGIN, seconds=12.0)
    assert summary["success_rates"] == [0.75, 0.5, 0.25, 0.25, 0.25]
    assert summary["average_length"] == 2.0
    assert summary["solved_histogram"] == [1, 1, 1, 0, 0, 1]
    assert summary["per_task"] == {
        "a": {"solved": 3, "attempted": 4},
        "b": {"solved": 2, "attempted": 3},
        "c": {"solved": 1, "attempted": 2},
        "d": {"solved": 1, "attempted": 1},
        "e": {"solved": 1, "attempted": 1},
    }
    assert summary["env_steps"] == 50 + 360 + 20 + 360 + 10 + 360
    assert (summary["policy_hash"], summary["label_fraction"], summary["env"]) == ("abc", 0.1, {"scene": "D"})
    json.dumps(summary)


@pytest.mark.parametrize("with_checksum", [True, False])
def test_rows_of_older_releases_are_read_under_the_new_keys(tmp_path, with_checksum):
    old = [{"steps" if key == "env_steps" else key: value for key, value in one.items()} for one in ROWS]
    lines = [results.sealed_line(one) if with_checksum else json.dumps(one) for one in old]
    (tmp_path / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert results.read_rows(tmp_path / "results.jsonl") == ROWS


def test_the_average_length_is_the_sum_of_success_rates():
    summary = results.summarize(ROWS, ORIGIN, seconds=1.0)
    assert summary["average_length"] == pytest.approx(sum(summary["success_rates"]))


def test_no_rows_make_no_summary():
    with pytest.raises(InputError, match="no finished chain"):
        results.summarize([], ORIGIN, seconds=0.0)


def test_a_paired_difference_compares_the_same_chains_only():
    ours = [row(0, 3), row(1, 2), row(7, 5)]
    base = [row(0, 1), row(1, 2), row(2, 5)]
    mean, low, high, chains = results.paired_difference(ours, base)
    assert (mean, chains) == (1.0, 2)
    assert low <= mean <= high
    assert results.paired_difference(ours, [row(9, 1)]) is None
    assert results.paired_difference([row(0, 1)], [row(0, 1, tasks=TASKS[::-1])]) is None


def test_rows_survive_the_disk(tmp_path):
    path = tmp_path / "results.jsonl"
    for one in reversed(ROWS):
        results.append_row(path, one)
    assert results.read_rows(path) == list(reversed(ROWS))
    results.write_sorted(path, results.read_rows(path))
    assert results.read_rows(path) == ROWS


@settings(deadline=None)
@given(st.data())
def test_a_torn_file_gives_its_whole_rows_and_can_be_appended_to(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("torn") / "results.jsonl"
    for one in ROWS:
        results.append_row(path, one)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert results.read_rows(path) == ROWS[:kept]
    results.drop_torn_line(path)
    for one in ROWS[kept:]:
        results.append_row(path, one)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        *("{}", "[]", "nonsense", "", "[" * 100_000),
        json.dumps({**ROWS[0], "solved": 9}),
        json.dumps({**ROWS[2], "env_steps": [1]}),
        json.dumps({**ROWS[2], "sequence": -1}),
        json.dumps({**ROWS[2], "seed": 1e999}),
        json.dumps({**ROWS[2], "subtasks": "abcde"}),
        json.dumps({**ROWS[0], "solved": 4, "env_steps": [10] * 5}),  # chain 0 once more, with another end
    ],
)
def test_a_whole_line_that_is_no_row_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "results.jsonl"
    results.append_row(path, ROWS[0])
    with path.open("a") as file:
        file.write(line + "\n")
    results.append_row(path, ROWS[1])
    with pytest.raises(InputError, match="line 2"):
        results.read_rows(path)


def test_the_five_lines_carry_every_number_with_its_interval():
    lines = dict(results.five_lines(results.summarize(ROWS, ORIGIN, seconds=2.0), policy=""))
    assert len(lines) == 5
    assert lines["average length"].startswith("2.00 of 5 [")
    assert lines["success %"].count("[") == 5
    assert "10 % of the action labels" in lines["policy"]
