"""Nothing that happened to a rollout's files passes silently: it is an error that names the file, or has no effect."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import bind_rollout, check_config, rollout
from vw2_robot.rollouts.compare import compare
from vw2_robot.rollouts.merge import merge
from vw2_robot.rollouts.recording import recording_path
from vw2_robot.rollouts.report.report import write_report
from vw2_robot.rollouts.report.run_folders import discover
from vw2_robot.rollouts.report.strips import read_recording
from vw2_robot.rollouts.results import read_results, read_rows, read_seconds
from vw2_robot.storage.files import read_json, read_yaml

FILES = ("results.jsonl", "summary.json", "provenance.json", "config.yaml", "timing.jsonl", "comparison.json")


@pytest.fixture(scope="module")
def finished(counting_world, tmp_path_factory):
    """A rollout with recorded actions that was compared with another one, its configuration, what it holds."""
    from vw2_robot.rollouts.config import RolloutConfig

    folder = tmp_path_factory.mktemp("damage")
    world = {"_target_": "counting_world.CountingBenchmark", "max_steps": 7}
    same = {"policy": "random", "env": world, "num_sequences": 3, "videos": 0, "record": True}
    rollout(RolloutConfig(run_dir=str(folder / "base"), **same))
    config = RolloutConfig(run_dir=str(folder / "run"), against=str(folder / "base"), **same)
    rollout(config)
    return folder / "run", config, everything_in(folder / "run", config)


def everything_in(run, config):
    """All that report, comparison, replay and resume take from a folder."""
    rows = read_results(run)
    ((one,), provenance) = discover([run])[1], read_json(run / "provenance.json", cure="")
    check_config(run, config)
    outputs = [read_recording(recording_path(run, row["sequence"])) for row in rows]
    arrays = [[array.tolist() for array in (each.actions, each.subtask)] for each in outputs]
    seconds = read_seconds(run / "timing.jsonl")
    return rows, one.summary, one.num_requested, provenance, read_yaml(run / "config.yaml", cure=""), seconds, arrays


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), position=st.floats(0, 1, exclude_max=True), kind=st.sampled_from([*range(8), "cut", "zeros"]))
def test_no_flipped_bit_and_no_cut_is_silent(finished, tmp_path, data, position, kind):
    run, config, expected = finished
    broken = tmp_path / "broken" / "run"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(run, broken)
    recordings = [f"actions/chain_{number:04d}.npz" for number in range(3)]
    file = broken / data.draw(st.sampled_from([*FILES, *recordings]), label="file")
    content = bytearray(file.read_bytes())
    at = int(position * len(content))
    if kind == "cut":
        del content[at:]
    elif kind == "zeros":  # what some file systems leave of an unsynced end
        content[at:] = bytes(len(content) - at)
    else:
        content[at] ^= 1 << kind
    file.write_bytes(content)
    try:
        found = everything_in(broken, config)
        bind_rollout(broken, config, expected[3])
    except InputError as error:
        assert str(broken) in str(error)  # noqa: PT017 - either outcome is right
        return
    # An incomplete end is dropped, also one whose last line end was hit: how long chains took is no result.
    if file.name == "timing.jsonl" and (kind in ("cut", "zeros") or at == len(content) - 1):
        expected = (*expected[:5], found[5], expected[6])
    assert found == expected


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_that_is_there_twice_counts_once_and_two_results_of_a_chain_are_refused(finished, tmp_path):
    rows = finished[2][0]
    write_rows(tmp_path / "twice", [*rows, rows[1]])  # two starts of an older release, which had no lock
    assert read_rows(tmp_path / "twice/results.jsonl") == rows
    write_rows(tmp_path / "two", [*rows, {**rows[1], "seed": 7}])
    with pytest.raises(InputError, match=r"line 4 .*another result of chain 1"):
        read_rows(tmp_path / "two/results.jsonl")


def test_rows_that_the_summary_counted_and_that_are_gone_are_noticed(finished, config, tmp_path):
    run = tmp_path / "run"
    rollout(config())
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    (run / "results.jsonl").write_bytes(b"".join(lines[:4]))
    for use in (lambda: write_report([run], tmp_path / "page"), lambda: compare(read_results(run), read_results(run))):
        with pytest.raises(InputError, match=r"results\.jsonl is damaged: it holds 4 chains, summary\.json counted 6"):
            use()
    rollout(config())  # runs them again
    assert (run / "results.jsonl").read_bytes() == b"".join(lines)


def test_results_of_unknown_origin_are_not_continued(config, tmp_path):
    rollout(config())
    (tmp_path / "run/provenance.json").unlink()
    with pytest.raises(InputError, match=r"holds results, but no provenance\.json"):
        rollout(config())


@pytest.mark.parametrize("name", FILES)
def test_an_empty_or_damaged_file_is_named_or_the_rollout_goes_on(finished, tmp_path, name):
    run, config, (rows, *_) = finished
    config = dataclasses.replace(config, run_dir=str(tmp_path / "run"))
    for content in (b"", b"\0" * 50, b"[1]\n", b"{\xff}\n", b"a: &a [*a]\n"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(content)
        try:
            rollout(config)
        except InputError as error:
            assert name in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert read_rows(tmp_path / "run/results.jsonl") == rows


def test_a_damaged_shard_is_named(config, tmp_path):
    for number in range(2):
        rollout(config("parts", shard=f"{number}/2"))
    parts = tmp_path / "parts"
    for name in ("results.jsonl", "provenance.json", "config.yaml", "timing.jsonl"):
        file = parts / "shard_1_of_2" / name
        good = file.read_bytes()
        file.write_bytes(good.replace(b"seed", b"sEed").replace(b"seconds", b"sEconds"))
        with pytest.raises(InputError, match=rf"shard_1_of_2/{name}.*(damaged|is no)"):
            merge(parts)
        file.write_bytes(good)
    merge(parts)
