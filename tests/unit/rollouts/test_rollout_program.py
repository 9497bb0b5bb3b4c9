"""The program as a whole, on the counting world: files, resume, workers, errors."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout, solved_video
from vw2_robot.rollouts.config import open_benchmark
from vw2_robot.rollouts.recording import recording_path
from vw2_robot.rollouts.results import read_rows
from vw2_robot.storage.files import read_json


def test_a_rollout_leaves_all_its_files_and_the_right_numbers(config, tmp_path):
    summary = rollout(config(videos=2))
    run = tmp_path / "run"
    assert [row["solved"] for row in read_rows(run / "results.jsonl")] == [2, 1, 0, 4, 3, 2]
    assert summary["average_length"] == 2.0
    assert summary["success_rates"] == pytest.approx([5 / 6, 4 / 6, 2 / 6, 1 / 6, 0])
    assert read_json(run / "summary.json", cure="", sealed=True) == summary
    assert yaml.safe_load((run / "config.yaml").read_text())["num_sequences"] == 6
    assert sorted(path.name for path in (run / "videos").glob("*.mp4")) == ["chain_0002.mp4", "chain_0003.mp4"]
    for name in ("provenance.json", "timing.jsonl", "report.html", "table.md", "table.tex", "log.txt"):
        assert (run / name).is_file()
    # Of the two videos the one that shows a success.
    row = next(row for row in read_rows(run / "results.jsonl") if row["sequence"] == 3)
    shown = f'"{row["instructions"][0]}", solved in {row["env_steps"][0]} steps'
    assert solved_video(run) == f"{run / 'videos/chain_0003.mp4'}: {shown}"
    (run / "videos/chain_0003.mp4").unlink()
    assert solved_video(run) is None


def test_the_summary_names_what_produced_it(config):
    summary = rollout(config(seed=5, n_action_steps=2))
    assert (summary["policy"], summary["policy_hash"], summary["label_fraction"]) == ("scripted", "ab" * 32, 0.1)
    assert (summary["env"]["scene"], summary["seed"], summary["n_action_steps"]) == ("count", 5, 2)
    assert {"vw2_robot", "python", "torch"} <= summary["versions"].keys()
    assert summary["env_steps"] == 12 * 3 + 6 * 12  # twelve solved subtasks of 3 steps, six failures at the limit


def test_a_policy_acts_as_asked_and_its_codes_are_recorded(config, checkpoint, tmp_path):
    asked = {"acting": "sampled", "temperature": 5.0, "policy": str(checkpoint), "num_sequences": 1}
    rollout(config(record=True, env={"max_steps": 9}, **asked))
    policy = read_json(tmp_path / "run" / "provenance.json", cure="", sealed=True)["policy"]
    assert (policy["acting"], policy["temperature"]) == ("sampled", 5.0)
    with np.load(recording_path(tmp_path / "run", 0)) as file:
        assert len(np.unique(file["tokens"])) > 4  # one image: by argmax these would be four
    with pytest.raises(InputError, match=r"keeps state between calls .*acting=sampled"):
        rollout(config("batch", batch_size=2, **asked))
    with pytest.raises(InputError, match="policy=random decodes no codes: leave out acting and temperature"):
        rollout(config("no", policy="random", acting="argmax"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_results_cut_at_any_byte_are_completed_to_the_same_file(config, finished, tmp_path, data):
    whole = finished / "results.jsonl"
    if not whole.is_file():
        rollout(config(policy="random", env={"max_steps": 7}))
        for name in ("results.jsonl", "config.yaml", "provenance.json", "timing.jsonl"):
            shutil.copy(tmp_path / "run" / name, finished / name)
    run = tmp_path / "cut"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished, run)
    (run / "config.yaml").unlink()
    for name in ("results.jsonl", "timing.jsonl"):
        content = (finished / name).read_bytes()
        (run / name).write_bytes(content[: data.draw(st.integers(0, len(content)), label=name)])
    rollout(config("cut", policy="random", env={"max_steps": 7}))
    assert (run / "results.jsonl").read_bytes() == whole.read_bytes()


def test_an_interrupted_run_ends_with_the_same_videos(config, tmp_path):
    rollout(config("whole", videos=3))
    rollout(config("cut", videos=3))
    run = tmp_path / "cut"
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    (run / "results.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    shutil.rmtree(run / "videos")
    (run / "videos").mkdir()
    (run / "videos" / ".chain_0002.mp4.tmp").touch()  # half-written when it was killed
    rollout(config("cut", videos=3))
    for video in sorted((tmp_path / "whole" / "videos").iterdir()):
        if video.stem not in ("chain_0000", "chain_0001"):  # their rows were there already
            assert (run / "videos" / video.name).read_bytes() == video.read_bytes()
    assert not (run / "videos" / ".chain_0002.mp4.tmp").exists()


def test_two_workers_give_the_bytes_of_one(config, tmp_path):
    rollout(config("one", policy="random", videos=2, env={"max_steps": 9}))
    rollout(config("two", policy="random", videos=2, workers=2, env={"max_steps": 9}))
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "results.jsonl").read_bytes() == (two / "results.jsonl").read_bytes()
    videos = sorted(path.name for path in (one / "videos").iterdir())
    assert videos == sorted(path.name for path in (two / "videos").iterdir())
    assert all((one / "videos" / name).read_bytes() == (two / "videos" / name).read_bytes() for name in videos)


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("die", InputError, r"exit code -9 .* while it had chain 3, which was tried 4 times"),
        ("input", InputError, "chain 3: the world is out of tables"),
        ("bug", RuntimeError, r"chain 3:\n(.|\n)*a bug of ours"),
    ],
)
def test_a_workers_end_names_its_chain_and_keeps_what_was_done(config, tmp_path, trouble, error, message):
    with pytest.raises(error, match=message):
        rollout(config(workers=2, env={"trouble": trouble}))
    done = {row["sequence"] for row in read_rows(tmp_path / "run" / "results.jsonl")}
    assert len(done) >= 2  # chain 3 is handed out once two are back
    assert 3 not in done


def test_a_worker_that_dies_is_replaced_and_its_chain_run_again(config, tmp_path, capsys):
    rollout(config("whole"))
    rollout(config("killed", workers=2, env={"trouble": str(tmp_path / "died")}))
    assert (tmp_path / "died").exists()
    assert re.search(
        r"rollout worker \d died with exit code -9 .* while it had chain 3; another one begins it again",
        capsys.readouterr().out,
    )
    assert (tmp_path / "killed/results.jsonl").read_bytes() == (tmp_path / "whole/results.jsonl").read_bytes()


def test_another_configuration_in_the_same_folder_names_the_keys(config):
    rollout(config())
    with pytest.raises(InputError, match=r"another configuration.*env\.max_steps.*seed \(0 -> 1\)"):
        rollout(config(seed=1, env={"max_steps": 13}))


def test_a_path_is_the_same_however_it_is_spelled(config, tmp_path, monkeypatch):
    rollout(config("first", policy="random", record=True, env={"max_steps": 9}))
    monkeypatch.chdir(tmp_path)
    for policy in ("first", "./first/", str(tmp_path / "first")):
        rollout(config("again", policy=policy, env={"max_steps": 9}))


def test_a_folder_of_another_kind_of_run_is_refused_and_left_alone(config, tmp_path):
    run = tmp_path / "run"
    for name, content, what in (("metrics.jsonl", "", "a training run"), ("config.yaml", "loop: 3\n", "another kind")):
        run.mkdir()
        (run / name).write_text(content)
        with pytest.raises(InputError, match=f"run holds {what}"):
            rollout(config())
        assert [path.name for path in run.iterdir()] == [name]
        assert (run / name).read_text() == content
        shutil.rmtree(run)


def test_a_second_start_is_refused_before_it_touches_anything(config, tmp_path):
    rollout(config("base"))
    hold = "from vw2_robot.storage.locks import lock_folder; import sys; lock = lock_folder(sys.argv[1], what='a rollout'); print(1, flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match=f"run is in use by another run: a rollout, process {process.pid} on"):
            rollout(config())
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run").exists()
    rollout(config())
    assert not (tmp_path / "run/.lock").exists()


def test_workers_and_nothing_else_may_change_between_starts(config):
    first = rollout(config())
    assert rollout(config(workers=3)) == first


def test_a_retrained_policy_in_the_same_folder_is_refused(config, counting_world, monkeypatch):
    rollout(config())
    monkeypatch.setattr(counting_world.ScriptedPolicy, "hash", "cd" * 32)
    with pytest.raises(InputError, match=r"another policy.*policy\.policy_hash"):
        rollout(config())


def test_legacy_resets_are_noted_only_where_they_matter(config, tmp_path, capsys):
    rollout(config(env={"reset_mode": "legacy"}))
    assert "legacy resets" not in capsys.readouterr().out
    (tmp_path / "run" / "results.jsonl").write_bytes(b"")
    rollout(config(env={"reset_mode": "legacy"}))
    assert "legacy resets" not in capsys.readouterr().out
    rows = (tmp_path / "run" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_bytes(rows[0])
    rollout(config(env={"reset_mode": "legacy"}))
    assert "legacy resets" in capsys.readouterr().out


def test_a_benchmark_without_experts_cannot_demonstrate(config, counting_world, monkeypatch):
    monkeypatch.delattr(counting_world.CountingBenchmark, "expert")
    with pytest.raises(InputError, match="no scripted experts"):
        rollout(config())


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"_target_": "no_such_module.World"}, "no_such_module"),
        ({"_target_": "counting_world.CountingBenchmark", "tables": 3}, "tables"),
        ({"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "scen": "D"}, "'scen'; nearest: env.scene"),
        ({"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "sentences": "x"}, "nearest: env.instructions"),
        ({"_target_": "counting_world.ScriptedPolicy"}, "is no benchmark: it has no sequences"),
    ],
)
def test_a_benchmark_that_cannot_be_built_says_why(counting_world, env, message):
    with pytest.raises(InputError, match=message):
        open_benchmark(env)


def test_errors_meant_for_people_come_out_of_the_benchmark_unwrapped(counting_world, monkeypatch):
    def refuse(self, **_):
        raise InputError("scene Q does not exist")

    monkeypatch.setattr(counting_world.CountingBenchmark, "__init__", refuse)
    with pytest.raises(InputError, match=r"^scene Q does not exist$"):
        open_benchmark({"_target_": "counting_world.CountingBenchmark"})


def test_a_start_that_failed_does_not_bind_the_folder(config, tmp_path):
    with pytest.raises(InputError):
        rollout(config(env={"tables": 3}))
    with pytest.raises(InputError, match="n_action_steps=99"):
        rollout(config(n_action_steps=99))
    assert not (tmp_path / "run").exists()
    rollout(config())


def test_a_folder_that_is_no_checkpoint_is_named(config, tmp_path):
    with pytest.raises(InputError, match="nothing_here"):
        rollout(config(policy=str(tmp_path / "nothing_here")))


def test_a_worker_imports_no_torch():
    code = "import sys, vw2_robot.rollouts.workers, vw2_robot.rollouts.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_workers_of_the_console_script_import_no_torch_either(tmp_path, monkeypatch):
    (tmp_path / "telling.py").write_text(
        "import os, sys\nfrom pathlib import Path\nimport counting_world\n"
        "class World(counting_world.CountingBenchmark):\n"
        "    def reset(self, sequence):\n"
        "        super().reset(sequence)\n"
        f"        Path({str(tmp_path)!r}, f'saw_{{os.getpid()}}').write_text(str('torch' in sys.modules))\n"
    )
    (tmp_path / "env").mkdir()
    (tmp_path / "env/telling.yaml").write_text("_target_: telling.World\n")
    script = tmp_path / "vw2-rollout"  # as pip writes it
    script.write_text(
        "import sys\nfrom vw2_robot.command_line.entry_points import rollout\n"
        "if __name__ == '__main__':\n    sys.exit(rollout())\n"
    )
    places = [str(tmp_path), str(Path(__file__).parent), str(Path(__file__).parents[3])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    overrides = [
        "env=telling",
        "policy=random",
        "num_sequences=4",
        "videos=0",
        "workers=2",
        f"run_dir={tmp_path / 'run'}",
    ]
    subprocess.run(
        [sys.executable, str(script), "--config-dir", str(tmp_path), *overrides], check=True, capture_output=True
    )
    assert {file.read_text() for file in tmp_path.glob("saw_*")} == {"False"}


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: 0}
            for name in ("workers", "num_sequences", "n_action_steps", "threads", "batch_size", "rollouts_per_task")
        ),
        *({name: -1} for name in ("videos", "seed", "retries", "first_sequence", "sequences_seed", "starts_seed")),
        {"alpha": 1.0},
    ],
)
def test_settings_that_cannot_work_are_refused_with_their_number(config, changes):
    (key, value), *_ = changes.items()
    with pytest.raises(ValueError, match=f"{key}={value}"):
        config(**changes)


def test_a_subset_has_the_rows_of_the_whole(config, tmp_path):
    rollout(config("whole"))
    summary = rollout(config("some", sequences=["1:3", 5]))
    whole = {row["sequence"]: row for row in read_rows(tmp_path / "whole/results.jsonl")}
    assert read_rows(tmp_path / "some/results.jsonl") == [whole[1], whole[2], whole[5]]
    assert summary["num_sequences"] == 3
    rollout(config("one", sequences="2:3"))
    assert read_rows(tmp_path / "one/results.jsonl") == [whole[2]]
    with pytest.raises(InputError, match="asks for chain 6, but there are chains 0 to 5"):
        rollout(config("none", sequences=6))


def test_skipped_chains_and_other_seeds_are_in_the_provenance(config, tmp_path):
    rollout(config("whole"))
    whole = {row["sequence"]: row for row in read_rows(tmp_path / "whole/results.jsonl")}
    rollout(config("last", num_sequences=2, first_sequence=4))
    assert read_rows(tmp_path / "last/results.jsonl") == [whole[4], whole[5]]
    rollout(config("others", sequences_seed=1))
    assert [row["solved"] for row in read_rows(tmp_path / "others/results.jsonl")] == [1, 0, 4, 3, 2, 1]
    kept = read_json(tmp_path / "others/provenance.json", cure="", sealed=True)
    assert (kept["sequences_seed"], kept["first_sequence"], kept["starts_seed"]) == (1, 0, 0)
    with pytest.raises(InputError, match=r"sequences_seed \(1 -> 2\)"):
        rollout(config("others", sequences_seed=2))
    with pytest.raises(InputError, match=r"first_sequence \(4 -> 3\)"):
        rollout(config("last", num_sequences=2, first_sequence=3))
    with pytest.raises(InputError, match="starts_seed=1 means nothing with protocol=chain"):
        rollout(config("starts", starts_seed=1))
    with pytest.raises(InputError, match="has one list of chains alone"):
        rollout(config("starts", protocol="single", starts_seed=1))


@pytest.mark.parametrize("more", [{"num_sequences": 6}, {"protocol": "single", "rollouts_per_task": 3}])
def test_more_chains_continue_a_finished_folder_to_the_bytes_of_all(config, tmp_path, more):
    fewer = {**more, **{key: 1 for key, value in more.items() if isinstance(value, int)}}
    first = rollout(config("grown", videos=2, **fewer))
    summary = rollout(config("grown", videos=2, **more))
    assert (
        rollout(config("whole", videos=2, **more))["num_sequences"] == summary["num_sequences"] > first["num_sequences"]
    )
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    names = ["results.jsonl", "provenance.json", *(f"videos/{path.name}" for path in (whole / "videos").iterdir())]
    assert all((grown / name).read_bytes() == (whole / name).read_bytes() for name in names)
    assert "is not finished" not in (grown / "report.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="another configuration"):
        rollout(config("grown", videos=2, **fewer))
    with pytest.raises(InputError, match=r"another configuration.*seed \(0 -> 1\)"):
        rollout(config("grown", videos=2, **{**more, "seed": 1}))


def test_growing_brings_instructions_of_more_tasks_but_changes_none(config, counting_world, tmp_path, monkeypatch):
    few = {"protocol": "single", "sequences": "0:1"}
    rollout(config(**few))
    file = tmp_path / "run/provenance.json"
    assert len(read_json(file, cure="", sealed=True)["instructions"]) == 1
    (tmp_path / "run/config.yaml").unlink()  # as its cure says
    rollout(config(protocol="single", rollouts_per_task=1))
    assert len(read_json(file, cure="", sealed=True)["instructions"]) == 5
    monkeypatch.setattr(counting_world.CountingBenchmark, "instruction", lambda self, task: f"now {task}")
    with pytest.raises(InputError, match=r"instructions\.open"):
        rollout(config(protocol="single", rollouts_per_task=2))


def test_shards_cannot_be_given_more_chains(config):
    rollout(config(num_sequences=4, shard="0/2"))
    with pytest.raises(InputError, match=r"num_sequences \(4 -> 6\)"):
        rollout(config(shard="0/2"))


def test_a_policy_may_be_named_by_its_module(config, counting_world, tmp_path):
    summary = rollout(config(policy="counting_world:ScriptedPolicy", workers=2))
    assert (summary["policy"], summary["average_length"]) == ("scripted", 5.0)
    for name, message in (
        ("counting_world:Missing", "cannot be made"),
        ("counting_world:CountingBenchmark", "makes no Policy: it has no infer"),
        ("no_such_module:Policy", "cannot be made .*begin the command with PYTHONPATH=."),
    ):
        with pytest.raises(InputError, match=message):
            rollout(config("other", policy=name))


def test_single_tasks_are_counted_task_by_task(config, tmp_path):
    summary = rollout(config(protocol="single", rollouts_per_task=3, videos=1))
    assert summary["per_task"]["push"] == {"solved": 0, "attempted": 3}
    assert summary["per_task"]["open"] == {"solved": 3, "attempted": 3}
    assert summary["success_rates"] == [pytest.approx(12 / 15)]
    assert (summary["average_length"], summary["chain_length"]) == (pytest.approx(12 / 15), 1)
    assert "– |" in (tmp_path / "run/table.md").read_text()
    assert "80.0" in (tmp_path / "run/report.html").read_text()


def test_a_benchmark_without_single_tasks_says_so(config, counting_world, monkeypatch):
    monkeypatch.delattr(counting_world.CountingBenchmark, "single_tasks")
    with pytest.raises(InputError, match="no start states for it"):
        rollout(config(protocol="single"))
