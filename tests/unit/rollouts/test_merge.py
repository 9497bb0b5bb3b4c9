"""Shards put together are the rollout without shards."""

import shutil

import pytest
import yaml

from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.merge import find_shards, merge


@pytest.fixture
def sharded(config, tmp_path):
    """Four chains' worth of a rollout in three shards, finished."""
    for number in range(3):
        rollout(config("parts", policy="random", env={"max_steps": 9}, videos=2, record=True, shard=f"{number}/3"))
    return tmp_path / "parts"


def test_merged_shards_are_the_bytes_of_one_rollout(config, sharded, tmp_path):
    summary = rollout(config("whole", policy="random", env={"max_steps": 9}, videos=2, record=True))
    merged = merge(sharded)
    whole = tmp_path / "whole"
    names = ["results.jsonl", *(f"videos/{f.name}" for f in (whole / "videos").iterdir())]
    names += [f"actions/{f.name}" for f in (whole / "actions").iterdir()]
    assert len(names) == 1 + 2 * 3 + 6  # rows; two videos with poster and answers; recordings
    for name in names:
        assert (sharded / name).read_bytes() == (whole / name).read_bytes()
    assert len(list((sharded / "videos").iterdir())) == 6
    for one in (summary, merged):
        one.pop("seconds")
    assert merged == summary
    assert (sharded / "provenance.json").read_bytes() == (whole / "provenance.json").read_bytes()
    assert yaml.safe_load((sharded / "config.yaml").read_text())["shard"] is None
    assert (sharded / "report.html").is_file()
    merge(sharded)  # again: nothing is in the way


def test_a_shard_that_is_missing_or_cut_is_named(sharded):
    rows = sharded / "shard_1_of_3/results.jsonl"
    rows.write_bytes(rows.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"shard_1_of_3 has 1 of 2 chains"):
        merge(sharded)
    shutil.rmtree(sharded / "shard_1_of_3")
    with pytest.raises(InputError, match="lacks shard 1/3; run vw2-rollout shard=1/3"):
        merge(sharded)
    (sharded / "shard_0_of_4").mkdir()
    with pytest.raises(InputError, match=r"shards of \[3, 4\] pieces"):
        find_shards(sharded)
    with pytest.raises(InputError, match="holds no shards"):
        merge(sharded / "shard_0_of_3")


def test_shards_of_different_rollouts_are_refused(config, sharded):
    shutil.rmtree(sharded / "shard_2_of_3")
    rollout(config("parts", policy="random", env={"max_steps": 9}, videos=2, record=True, shard="2/3", seed=1))
    with pytest.raises(InputError, match=r"shard_2_of_3 is no shard of the rollout .*seed \(0 -> 1\)"):
        merge(sharded)
