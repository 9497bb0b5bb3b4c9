"""The reference experiment: its plan, its archive, and the page from it."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment.plan import FAMILIES, files_of
from benchmarks.results.__main__ import is_below
from benchmarks.results.archive import Archive, add_settings, finished_jobs, keep, read_archive
from benchmarks.results.configs import ABSENT, COMMANDS, compared_jobs
from benchmarks.results.page import codes_section, write_page
from benchmarks.results.plan import METHODS, RUN_STAGES, Plan, planned
from benchmarks.results.policies import few_section
from benchmarks.results.seeds import over_seeds, seed_interval
from benchmarks.results.settings import PROGRAMS, settings_of
from vw2_robot.rollouts.results import read_rows

REPO = Path(__file__).resolve().parents[3]
ARCHIVE = REPO / "benchmarks" / "results" / "archive"


def test_every_job_of_the_plan_has_a_unique_name_and_needs_jobs_of_the_plan(tmp_path):
    plan = Plan(tmp_path, [0, 1], bridge=None)
    jobs = [job for stage in RUN_STAGES for job in plan.jobs(stage)]
    names = {job.name for job in jobs}
    assert len(jobs) == len(names)
    before = set()
    for one in jobs:
        assert set(one.needs) <= before, one.name
        before.add(one.name)
    assert len([name for name in names if name.startswith("finetune/")]) == 2 * len(METHODS)


def test_jobs_are_chosen_by_whole_parts_of_their_names():
    assert is_below("finetune/vw2_10/seed_0", ["data/D", "finetune/vw2_10"])
    assert is_below("data/D", ["data/D"])
    assert not is_below("data/D_hard", ["data/D"])


def fake_rollout(out, name, solved, *, tasks, arguments=(), settings=None, done=True, instruction="x"):
    folder = out / name
    folder.mkdir(parents=True)
    rows = [
        {
            "sequence": number, "initial_state": {}, "subtasks": list(tasks), "solved": value,
            "env_steps": [10] * min(value + 1, len(tasks)), "seed": 0,
            "instructions": [instruction] * min(value + 1, len(tasks)),
        }
        for number, value in enumerate(solved)
    ]  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    note = {"program": "p", "arguments": list(arguments), "commit": "1a2b3c4", "seconds": 60.0, "done": done}
    note |= {} if settings is None else {"settings": settings}
    (out / "jobs").mkdir(exist_ok=True)
    (out / "jobs" / f"{name.replace('/', '__')}.json").write_text(json.dumps(note))


def test_what_is_kept_makes_the_same_page_adds_up_and_names_no_folder_of_this_machine(tmp_path):
    one, other, kept = tmp_path / "one", tmp_path / "other", tmp_path / "kept"
    for out, seed in ((one, 0), (other, 1)):
        fake_rollout(out, f"single/vw2_10/seed_{seed}", [1, 0], tasks=["a"], arguments=[f"policy={out}/finetune"])
        (out / "single" / "vw2_10" / f"seed_{seed}" / "videos").mkdir()
    fake_rollout(one, "single/oracle_10/seed_0", [1], tasks=["a"], done=False)
    fake_rollout(other, "probe/seed_1", [], tasks=[])
    (other / "probe" / "seed_1" / "latent_report.json").write_text(json.dumps({"dldm": f"{other}/pretrain"}))
    keep(one, kept)
    write_page(read_archive(kept), tmp_path / "kept.md", list(METHODS), {})
    write_page(finished_jobs(one), tmp_path / "one.md", list(METHODS), {})
    assert (tmp_path / "kept.md").read_text() == (tmp_path / "one.md").read_text()
    keep(other, kept)
    files = sorted(path.name for path in kept.rglob("*"))
    assert files == [
        "chains.csv",
        "failed.jsonl",
        "jobs.jsonl",
        "probes.jsonl",
        "single.csv",
        "starts.jsonl",
        "tasks.json",
    ]
    assert not any(str(tmp_path) in (kept / file).read_text() for file in files)
    archive = read_archive(kept)
    assert sorted(archive.jobs) == ["probe/seed_1", "single/vw2_10/seed_0", "single/vw2_10/seed_1"]
    assert archive.jobs["single/vw2_10/seed_0"]["arguments"] == ["policy=RESULTS/finetune"]
    assert archive.probes == {"probe/seed_1": {"dldm": "RESULTS/pretrain"}}
    for out, seed in ((one, 0), (other, 1)):
        name = f"single/vw2_10/seed_{seed}"
        assert archive.rows(name) == read_rows(out / name / "results.jsonl")
    assert archive.rows("single/oracle_10/seed_0") == []
    assert archive.failed == {}
    note = one / "jobs" / "single__oracle_10__seed_0.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"status": 1, "reason": f"no {one}/policy"}))
    keep(one, kept)
    (failed,) = read_archive(kept).failed.items()
    assert (failed[0], failed[1]["reason"]) == ("single/oracle_10/seed_0", "no RESULTS/policy")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"done": True}))
    keep(one, kept)
    assert read_archive(kept).failed == {}
    with pytest.raises(SystemExit, match="is done; nothing is kept"):
        keep(tmp_path / "nothing", kept)


def test_rollouts_that_begin_otherwise_or_have_other_instructions_are_not_mixed(tmp_path):
    fake_rollout(tmp_path / "one", "single/a/seed_0", [1], tasks=["a"])
    fake_rollout(tmp_path / "other", "single/b/seed_0", [1], tasks=["b"])
    keep(tmp_path / "one", tmp_path / "kept")
    with pytest.raises(SystemExit, match="single/b/seed_0: single 0 begins otherwise than in other jobs"):
        keep(tmp_path / "other", tmp_path / "kept")
    fake_rollout(tmp_path / "third", "chains/c/seed_0", [0], tasks=["a", "b"], instruction="y")
    with pytest.raises(SystemExit, match=r"(chains/c|single/a)/seed_0: a has another instruction"):
        keep(tmp_path / "third", tmp_path / "kept")


def test_the_page_has_an_interval_over_seeds_and_every_seed_and_says_what_was_not_run(tmp_path):
    chain = ["a", "b", "c", "d", "e"]
    for seed, solved in ((0, [0, 1] * 50), (1, [0, 0, 0, 1] * 25)):
        fake_rollout(tmp_path, f"single/oracle_10/seed_{seed}", solved, tasks=["a"])
        fake_rollout(tmp_path, f"single/vw2_10/seed_{seed}", [1, 1, 0, 1] * 25, tasks=["a"])
        fake_rollout(tmp_path, f"chains/oracle_10/seed_{seed}", [0, 2], tasks=chain)
        fake_rollout(tmp_path, f"chains/vw2_10/seed_{seed}", [2, 2, 5], tasks=chain)  # the third is nobody's pair
        fake_rollout(tmp_path, f"finetune/vw2_10/seed_{seed}", [], tasks=[], settings={"label_fraction": 0.1})
    fake_rollout(tmp_path, "single/oracle_100/seed_0", [1, 0], tasks=["a"])
    write_page(finished_jobs(tmp_path), tmp_path / "results.md", list(METHODS), {})
    page = (tmp_path / "results.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| dLDM codes, in-domain video (`vw2`) | 10 % |")]
    assert rows[0].endswith("| 2 | 75.0 [75.0, 75.0] | 75.0, 75.0 | 100 |")
    assert rows[1].endswith("| 2 | 3.00 [3.00, 3.00] | 3.00, 3.00 | 100.0, 100.0 | 33.3, 33.3 | 3 |")
    lone = next(
        line for line in page.splitlines() if line.startswith("| no pre-training (`oracle`)") and "[one" in line
    )
    assert "| 1 | 50.0 [one seed] | 50.0 | 2 |" in lone
    pair = next(line for line in page.splitlines() if "(`vw2`) − no pre-training (`oracle`), 10 %" in line)
    # 25 and 50 points: 37.5 with 12.7 standard errors of 12.5, cut to what is possible.
    assert "| 2 | +37.5 [-100.0, +100.0] | +25.0, +50.0 | +1.00 [+1.00, +1.00] | +1.00, +1.00 |" in pair
    assert "Of 2 intervals, 1 exclude zero" in page
    lapa = next(line for line in page.splitlines() if line.startswith("| LAPA method"))
    assert "not run" in lapa
    assert "| the shipped file | 0 | not run |" in page


def test_an_interval_over_seeds_is_students_and_one_seed_has_none():
    low, high = seed_interval([23.24, 11.76, 16.76], lowest=-100, highest=100)
    assert (low, high) == pytest.approx((17.25 - 4.3027 * 3.3231, 17.25 + 4.3027 * 3.3231), abs=0.01)
    assert seed_interval([0.5], lowest=0, highest=1) is None
    assert over_seeds({2: 0.5}, ".1f", scale=100, lowest=0, highest=1) == "50.0 [one seed]"
    assert over_seeds({}, ".1f", scale=100, lowest=0, highest=1) == "not run"


def test_a_policy_taken_far_is_shown_with_what_it_learned_from(tmp_path):
    fake_rollout(tmp_path, "few/chains", [0, 5], tasks=["a", "b", "c", "d", "e"])
    fake_rollout(tmp_path, "data/D", [], tasks=[], settings={"episodes": 1200, "play": 4})
    fake_rollout(tmp_path, "data/D_hard", [], tasks=[], settings={"episodes": 50, "play": 4})
    fake_rollout(tmp_path, "data/D_large", [], tasks=[])
    settings = {"data.path": "RESULTS/data/D_large", "label_fraction": 0.1, "hardware.threads": 1}
    for name in ("images/D_large", "few/pretrain", "few/finetune"):
        fake_rollout(tmp_path, name, [], tasks=[], settings=settings)
    section = few_section(finished_jobs(tmp_path))
    assert "intervals over its rollouts" in section
    assert "| 50.0 [9.5, 90.5] |" in section
    assert "| 2.50 [0.00, 5.00] |" in section
    assert "Demonstrations: 5000, of which 10 % with labels. Recording them: 3 minutes on two cores." in section
    assert "Training: 3 minutes on 1" in section


def test_the_page_shows_codes_beside_pixels_over_seeds():
    archive = Archive()
    targets = ("x", "y", "z", "roll", "pitch", "yaw", "rotation", "opening")
    for seed in (0, 2):
        codes, pixels = (
            {name: {"r2": value + 0.1 * seed, "ci95": [0.0, 1.0]} for name in targets} for value in (0.5, 0.25)
        )
        moved = {"code_values": {"mlp": codes}, "codes_one_hot": {"linear": codes}, "pixels_equal": {"mlp": pixels}}
        probe = {"widths": {"pixels_equal": 92}, "in_scene": {"probe": {"moved": moved}}}
        archive.probes[f"probe/seed_{seed}"] = {"probe": probe}
    (line,) = [line for line in codes_section(archive).splitlines() if line.startswith("| x ")]
    assert "| 0.50, 0.70 | 0.35 [" in line
    assert "| 0.25, 0.45 | +0.25 [+0.25, +0.25] |" in line


def test_arguments_of_a_job_are_composed_to_the_settings_of_its_program():
    arguments = ["policy=random", "run_dir=x", "rollouts_per_task=3", "env.scene=A"]
    settings = settings_of("vw2_robot.rollouts", arguments)
    assert (settings["rollouts_per_task"], settings["env.scene"], settings["num_sequences"]) == (3, "A", 1000)
    assert settings_of("benchmarks.results.join_recordings", ["a"]) is None


def test_missing_settings_are_composed_by_this_checkout_where_no_commit_is_known():
    note = {"program": "vw2_robot.rollouts", "arguments": ["policy=random", "run_dir=RESULTS/x"], "commit": "unknown"}
    archive = Archive(jobs={"x": {**note, "seconds": 1.0}})
    add_settings(archive)
    kept = archive.jobs["x"]
    assert kept["settings"] == settings_of(note["program"], note["arguments"])
    assert kept["arguments"] == note["arguments"]


def test_the_plan_takes_every_experiment_of_its_programs_and_adds_no_setting():
    jobs = planned([0, 1]).values()
    used = {item.split("=")[1] for job in jobs for item in job.arguments if item.startswith("+experiment=")}
    folder = REPO / "configs" / "experiment"
    there = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml")}
    # `pretrain/shared` decodes images. Several ways or looks, takeovers, prior, craft, other models: none is archived.
    several = {"record/D_several", "record/ABC_several", "record/ABC_looks", "record/D_takeover", "record/D_moved"}
    craft = {name for name in there if name.split("/")[1].startswith("craft")}
    later = {*several, *craft, "record/prior", "record/prior_states", "pretrain/prior", "pretrain/causal_lm"}
    # The registered experiment has files of its own, of which some recordings are older.
    registered = {name for family in FAMILIES for name in files_of(family)} - used
    shared = {"finetune/shared", "finetune/registered", "pretrain/registered", "probe_latents/registered"}
    assert used == there - shared - later - registered
    places = (
        "run_dir",
        "out",
        "--out",
        "policy",
        "network.like",
        "data.path",
        "data.frame_cache",
        "dldm",
        "labeled",
        "frame_cache",
    )
    plan = ("+experiment", "seed", "label_seed", "sequences", "stages", "workers", "hardware.threads", "device")
    keys = {item.split("=")[0] for job in jobs for item in job.arguments if "=" in item}
    assert keys <= {*places, *plan}


def test_the_commands_that_the_page_shows_compose():
    names = {
        program: yaml.safe_load((REPO / f"configs/{config}.yaml").read_text())
        for program, (config, *_) in PROGRAMS.items()
    }
    programs = {tree["hydra"]["help"]["app_name"]: program for program, tree in names.items()}
    commands = [shlex.split(line) for line in COMMANDS.strip().splitlines()]
    assert len(commands) == 5
    for script, *arguments in commands:
        assert settings_of(programs[script], arguments), script


def test_every_archived_job_was_made_with_the_settings_that_the_plan_has():
    jobs = planned([0, 1, 2])
    archive = read_archive(ARCHIVE)
    notes = archive.jobs
    found = compared_jobs(archive, jobs)
    trained = {name for name, note in notes.items() if "settings" in note and not name.startswith("images/")}
    assert trained - found.keys() == {"package/avx2"}
    for name, keys in found.items():
        # Made before baselines trained without aids, and before a prior could have a still control video.
        without_aids = name.startswith(("pretrain/lapa/", "pretrain/videoworld/"))
        assert without_aids or all(today == ABSENT or key == "vdm.still_control" for key, (_, today) in keys.items()), (
            name,
            keys,
        )
    given = (
        "seed=",
        "label_seed=",
        "sequences=",
        "policy=",
        "network.like=",
        "data.path=",
        "data.frame_cache=",
        "dldm=",
    )
    for name in found:  # what the settings leave out: seeds, chains, and which run or recordings a job began with
        for key, value in (item.split("=", 1) for item in jobs[name].arguments if item.startswith(given)):
            assert str(notes[name]["settings"][key]) == value, (name, key)


def test_the_page_in_the_repository_is_what_the_archive_makes(tmp_path):
    write_page(read_archive(ARCHIVE), tmp_path / "results.md", list(METHODS), planned([0, 1, 2]))
    assert (tmp_path / "results.md").read_bytes() == (REPO / "docs" / "results.md").read_bytes()
