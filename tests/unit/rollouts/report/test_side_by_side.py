"""Several rollouts side by side: differences on the chains they share, and what produced each."""

import hashlib
from dataclasses import replace

import pytest

from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.report.bars import position_groups
from vw2_robot.rollouts.report.run_folders import discover
from vw2_robot.rollouts.report.side_by_side import comparisons, provenance_table, value_text
from vw2_robot.rollouts.report.tables import number, signed


@pytest.fixture
def two(config, tmp_path):
    """All but "push" known, on chains 0..5; "open" alone and another reset, on chains 0..3."""
    rollout(config("full"))
    rollout(config("weak", env={"knows": ["open"], "reset_mode": "legacy"}, num_sequences=4))
    return discover([tmp_path / "full", tmp_path / "weak"])[1]


def test_each_rollout_is_compared_with_the_first_on_the_chains_both_ran(two):
    found = comparisons(two)
    (entry,) = found["entries"]
    assert (found["base"], entry["name"], entry["chains"]) == ("full", "weak", 4)
    assert (entry["wins"], entry["ties"], entry["losses"]) == (0, 1, 3)  # 1 0 0 0 against 2 1 0 4
    assert entry["mean"] == -1.5
    assert entry["at"] == pytest.approx(0.5 - 1.5 / (2 * found["reach"]))
    assert 0 <= entry["low"] < entry["at"] < entry["high"] <= 1
    assert any("reset_mode" in name for name in entry["differs"])


def test_one_rollout_has_nothing_beside_it(two):
    assert comparisons(two[:1]) is None


def test_rollouts_without_a_common_chain_have_no_difference(config, tmp_path):
    rollout(config("low", sequences="0:3"))
    rollout(config("high", sequences="3:6"))
    (entry,) = comparisons(discover([tmp_path / "low", tmp_path / "high"])[1])["entries"]
    assert entry["chains"] == 0


def test_provenance_marks_the_lines_in_which_rollouts_differ(two):
    table = {name: (values, differ) for name, values, differ in provenance_table(two)}
    assert table["world: reset mode"] == (["exact", "legacy"], True)
    assert table["world: scene"] == (["count", "count"], False)
    assert table["chains"] == (["6 of 6 requested", "4 of 4 requested"], True)
    sums = [hashlib.sha256((one.path / "results.jsonl").read_bytes()).hexdigest() for one in two]
    assert table["results.jsonl, SHA-256"] == (sums, True)
    assert "shard" not in table  # nobody has one
    assert "aids" not in table  # nor are any known
    first, second = (
        replace(one, provenance={**one.provenance, "policy": {"aids": aids}})
        for one, aids in zip(two, ([], ["reader"]), strict=True)
    )
    assert ("aids", ["none", "reader"], True) in provenance_table([first, second])


def test_folders_of_equal_name_get_different_names(config, tmp_path):
    for name in ("a/rollout", "b/rollout", "c"):
        rollout(config(name, num_sequences=1))
    found = discover([tmp_path / "a/rollout", tmp_path / "b/rollout", tmp_path / "c", tmp_path / "a"])[1]
    names = [one.name for one in found]
    assert [name.split("/")[-2:] for name in names[:2]] == [["a", "rollout"], ["b", "rollout"]]
    assert len(names) == len(set(names)) == 3


def test_positions_that_no_chain_reached_share_a_line(config, tmp_path):
    rollout(config("weak", env={"knows": ["open"]}))
    groups = position_groups(discover([tmp_path / "weak"])[1])
    assert [group["name"] for group in groups] == ["subtask 1", "subtask 2", "subtasks 3 to 5"]
    assert [(bar["count"], bar["total"]) for group in groups for bar in group["bars"]] == [(2, 6), (0, 2)]


def test_values_and_numbers_are_written_for_people():
    assert value_text({"a": [1, None], "b": "x", "c": [], "d": 0.0}) == "a 1, –, b x, c –, d 0.0"
    assert [number(value) for value in (-0.004, -0.5, 1.0)] == ["0.00", "−0.50", "1.00"]
    assert [signed(value) for value in (-0.004, 0.004, 0.5, -0.5)] == ["0.00", "0.00", "+0.50", "−0.50"]
