"""Merged shards are the rollout without shards."""

import dataclasses
import shutil
import subprocess
import sys

import pytest
import yaml

from vw2_robot.command_line import entry_points
from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.merge import find_shards, merge
from vw2_robot.storage.locks import lock_folder

OPTIONS = {"policy": "random", "env": {"max_steps": 9}, "videos": 2, "record": True}


@pytest.fixture(scope="module")
def finished(config_in, tmp_path_factory):
    """A rollout in three shards."""
    folder = tmp_path_factory.mktemp("shards") / "parts"
    for number in range(3):
        rollout(config_in(folder, shard=f"{number}/3", **OPTIONS))
    return folder


@pytest.fixture
def sharded(finished, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(finished, tmp_path / "parts")


def test_a_shard_that_is_missing_or_cut_is_named(sharded):
    rows = sharded / "shard_1_of_3/results.jsonl"
    rows.write_bytes(rows.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"shard_1_of_3 has 1 of 2 chains"):
        merge(sharded)
    shutil.rmtree(sharded / "shard_1_of_3")
    with pytest.raises(InputError, match="lacks shard 1/3; run vw2-rollout shard=1/3"):
        merge(sharded)
    (sharded / "shard_0_of_4").mkdir()
    with pytest.raises(InputError, match=r"shards i/n of n = \[3, 4\]"):
        find_shards(sharded)
    with pytest.raises(InputError, match="holds no shards"):
        merge(sharded / "shard_0_of_3")


def test_shards_of_different_rollouts_are_refused(config, sharded):
    shutil.rmtree(sharded / "shard_2_of_3")
    rollout(config("parts", shard="2/3", seed=1, **OPTIONS))
    with pytest.raises(InputError, match=r"shard_2_of_3 is no shard of the rollout .*seed \(0 -> 1\)"):
        merge(sharded)


def merged_files(folder):
    """Name and content of what does not depend on times."""
    names = ["results.jsonl", "provenance.json", "config.yaml", "videos", "actions"]
    paths = [path for name in names for path in sorted([folder / name, *(folder / name).glob("*")])]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def test_the_shard_that_finishes_last_merges_all_into_the_bytes_of_one_rollout(config, tmp_path, capsys):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for number in (2, 0, 1):  # in any order
        assert not (parts / "results.jsonl").exists()
        rollout(config("parts", shard=f"{number}/3", **OPTIONS))
    output = capsys.readouterr().out
    assert "1 of 3 shards are finished" in output
    assert "2 of 3 shards are finished" in output
    assert f"all 3 shards are finished; merged in {parts}" in output
    assert (parts / "report.html").is_file()
    assert not (parts / ".lock").exists()
    before = merged_files(parts)
    assert len(before) == 3 + 2 * 3 + 6  # rows and two descriptions; two videos with poster and answers; recordings
    rollout(config("parts", shard="0/3", **OPTIONS))  # started again: nothing to do, merged again
    assert merged_files(parts) == before
    summary = rollout(config("whole", **OPTIONS))
    assert {k: v for k, v in before.items() if k.name != "config.yaml"} == {
        k: v for k, v in merged_files(whole).items() if k.name != "config.yaml"
    }
    for path in [path for path in parts.iterdir() if not path.name.startswith("shard_")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # what the last shard has merged
    assert {**merge(parts), "seconds": 0} == {**summary, "seconds": 0}
    assert merged_files(parts) == before
    assert yaml.safe_load((parts / "config.yaml").read_text())["shard"] is None


def test_a_shard_is_finished_whatever_is_wrong_with_the_others(config, tmp_path, capsys):
    rollout(config("parts", shard="0/2", seed=1))
    summary = rollout(config("parts", shard="1/2"))
    assert summary["num_sequences"] == 3
    message = capsys.readouterr().out
    assert "the shards are not merged here" in message
    assert "seed (1 -> 0)" in message
    assert f"vw2-rollout merge=true run_dir={tmp_path / 'parts'}" in message
    assert not (tmp_path / "parts/results.jsonl").exists()


def test_of_two_shards_that_finish_together_one_merges(config, tmp_path, capsys):
    rollout(config("parts", shard="0/2"))
    hold = "from vw2_robot.storage.locks import lock_folder; import sys; lock = lock_folder(sys.argv[1], what='a merge of shards'); print(1, flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "parts")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        rollout(config("parts", shard="1/2"))
        assert "in use by another run: a merge of shards" in capsys.readouterr().out
        assert not (tmp_path / "parts/results.jsonl").exists()
    with lock_folder(tmp_path / "parts", what="a merge of shards"):
        assert merge(tmp_path / "parts")["num_sequences"] == 6


def test_a_shard_without_chains_does_not_stop_the_others(config, tmp_path):
    with pytest.raises(InputError, match="no finished chain"):
        rollout(config("parts", num_sequences=1, shard="0/2"))
    rollout(config("parts", num_sequences=1, shard="1/2"))
    assert (tmp_path / "parts/summary.json").is_file()


def test_the_program_merges_on_request(sharded, monkeypatch, capsys):
    for name in ("results.jsonl", "summary.json", "report.html"):
        (sharded / name).unlink()
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # the program sets it
    monkeypatch.setattr(sys, "argv", ["vw2-rollout", "merge=true", f"run_dir={sharded}"])
    entry_points.rollout.main()
    output = capsys.readouterr().out
    assert "average length" in output
    assert f"report: {sharded / 'report.html'}" in output
    assert (sharded / "summary.json").is_file()


def test_options_that_exclude_each_other_are_refused(config):
    with pytest.raises(ValueError, match="shard and merge"):
        dataclasses.replace(config(), merge=True, shard="0/2")
    with pytest.raises(ValueError, match="policy is missing"):
        config(policy="")


def test_a_merge_overwrites_no_other_rollout(config, tmp_path, capsys):
    rollout(config("parts", seed=7))
    before = merged_files(tmp_path / "parts")
    for number in range(2):
        rollout(config("parts", shard=f"{number}/2"))
    assert "holds another rollout beside the shards; these keys differ: seed (7 -> 0)" in capsys.readouterr().out
    assert merged_files(tmp_path / "parts") == before
