"""The registered experiment on invented archives: its plan and jobs, the registration, the page with its figures."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment import __main__ as program
from benchmarks.experiment import plan
from benchmarks.experiment.generated import BEGIN, END, current_part, replace_part
from benchmarks.experiment.jobs import Jobs
from benchmarks.experiment.page import write_results
from benchmarks.experiment.plan import FAMILIES, Family, Paper, Pretraining, Row, costs, problems
from benchmarks.experiment.registration import registration
from benchmarks.experiment.seed_figure import Dots, axis_ticks, seed_figure, stacked
from benchmarks.results.archive import Archive

SVG = "{http://www.w3.org/2000/svg}"
FAMILY = Family(
    "x",
    "Invented",
    0.1,
    (
        Row("scratch", "no pre-training", 3, paper=Paper(50.5, 0.0, 1.11)),
        Row("vw2", "vw2", 4, "in_domain_vw2", is_gated=True),
        Row("later", "later", 2, "in_domain_vw2"),
    ),
    (("x/vw2", "x/scratch"), ("x/vw2", "x/later")),
)


def test_every_job_needs_jobs_before_it_and_no_two_rows_make_one_differently(tmp_path):
    jobs = Jobs(tmp_path, FAMILIES, assets=tmp_path / "assets").all()
    before = set()
    for job in jobs:
        assert set(job.needs) <= before, job.name
        before.add(job.name)
    names = [job.name for job in jobs]
    assert len(names) == len(before)
    for family in FAMILIES:
        for row in family.rows:
            for part in ("finetune", "single", "chains", *(["gate"] if row.is_gated else [])):
                assert sum(name.startswith(f"{part}/{family.id_of(row)}/seed_") for name in names) == row.seeds
    # Jobs that families share are the same whichever of them are run.
    together = {job.name: job for job in jobs}
    for family in FAMILIES:
        for job in Jobs(tmp_path, [family], assets=tmp_path / "assets").all():
            assert together[job.name] == job
    with pytest.raises(SystemExit, match="needs the original CALVIN assets; give --assets DIR"):
        Jobs(tmp_path, FAMILIES)


def test_seeds_begin_where_tuning_ended_and_their_chains_do_not_overlap(tmp_path):
    jobs = Jobs(tmp_path, FAMILIES, assets=tmp_path).all()
    seeds = {
        int(argument.split("=")[1])
        for job in jobs
        for argument in job.arguments
        if re.match("(label_)?seed=", argument)
    }
    assert min(seeds) == 100
    rollouts = {job.name: job.arguments for job in jobs if job.name.startswith(("single/", "chains/"))}
    assert all({"starts_seed=100", "sequences_seed=100"} & set(arguments) for arguments in rollouts.values())
    chains = {
        name: next(a for a in arguments if a.startswith("sequences="))
        for name, arguments in rollouts.items()
        if name[0] == "c"
    }
    assert chains["chains/a/vw2/seed_100"] == chains["chains/a/scratch/seed_100"] == "sequences=0:30"
    assert chains["chains/a/vw2/seed_111"] == "sequences=330:360"
    assert plan.label_fraction_of(plan.experiment_file("finetune/vw2_10")) == 0.1


def test_recordings_that_show_others_again_and_video_of_two_robots_need_their_parts(tmp_path):
    jobs = {job.name: job for job in Jobs(tmp_path, FAMILIES, assets=tmp_path).all()}
    again = jobs["record/other_robots_same_tasks"]
    assert again.needs == ("record/ABC_several",)
    assert f"env.data={tmp_path / 'record/ABC_several'}" in again.arguments
    both = jobs["frames/D_several_and_other_robots_same_tasks"]
    assert both.needs == ("record/D_several", "record/other_robots_same_tasks")
    paths = ",".join(str(tmp_path / need) for need in both.needs)
    assert f"data.path=[{paths}]" in both.arguments
    assert "pretrain/codes_shuffled/seed_100" in jobs
    assert "probe/codes_shuffled/seed_100" not in jobs
    assert "record/ABC_several" in plan.files_of(FAMILIES[2])


def test_a_gated_row_waits_for_its_gate_and_asks_less_of_a_scene_it_has_not_seen(tmp_path):
    jobs = {job.name: job for job in Jobs(tmp_path, FAMILIES[:3]).all()}
    assert "gate/a/vw2/seed_103" in jobs["finetune/a/vw2/seed_103"].needs
    assert not any("gate" in need for need in jobs["finetune/a/videoworld/seed_103"].needs)
    report = str(tmp_path / "probe" / "in_domain_vw2" / "seed_103")
    policy = str(tmp_path / "pretrain" / "in_domain_vw2" / "seed_103")
    gate = ("--report", report, "--policy", policy, "--experiment", "finetune/a_vw2")
    assert jobs["gate/a/vw2/seed_103"].arguments == gate
    assert jobs["gate/c/vw2/seed_100"].arguments[-2:] == ("--unseen", "probe")
    like = f"network.like={tmp_path / 'pretrain' / 'in_domain_vw2' / 'seed_103'}"
    assert like in jobs["finetune/a/scratch/seed_103"].arguments


def test_the_cost_of_a_pretraining_is_paid_once_for_each_seed(monkeypatch):
    monkeypatch.setitem(plan.PRETRAININGS, "in_domain_vw2", Pretraining(("D_several",), core_minutes=60))
    for name, minutes in (("D_several", 90.0), ("probe", 6.0)):
        monkeypatch.setitem(plan.RECORDING_MINUTES, name, minutes)
    rows = tuple(replace(row, core_minutes=10) for row in FAMILY.rows)
    found = costs([replace(FAMILY, rows=rows)])
    # `scratch` takes its sizes from three of them, `vw2` needs a fourth; what is recorded first counts once.
    assert [cost[1:] for cost in found] == [(96, 180, 30), (0, 60, 40), (0, 0, 20)]
    text = registration([replace(FAMILY, rows=rows)])
    assert "| `x/scratch` | 100 to 102 | 1.6 | 3.0 | 0.5 | 5.1 |" in text
    assert "| `x/later` | 100 to 101 | 0.0 | 0.0 | 0.3 | 7.1 |" in text
    assert "| `x/vw2` | vw2 | `pretrain/in_domain_vw2` | `finetune/x_vw2` | 4 | yes | not known | not known |" in text
    assert "| x | `x/vw2` − `x/scratch` | 3 | 6.3 | 0.10 / 0.05 |" in text
    assert "- configs/experiment/finetune/x_vw2.yaml is missing" in text


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    wrong = replace(FAMILY, contrasts=(("x/vw2", "a/none"),), rows=FAMILY.rows[:1])
    folder = tmp_path / "finetune"
    folder.mkdir()
    (folder / "x_scratch.yaml").write_text("label_fraction: 1.0\n")
    monkeypatch.setattr(plan, "experiment_file", lambda name: tmp_path / f"{name}.yaml")
    found = list(problems([wrong]))
    assert "configs/experiment/finetune/x_scratch.yaml is missing" not in found
    assert "configs/experiment/record/D_several.yaml is missing" in found
    assert "x_scratch.yaml has label_fraction=1.0, the plan 0.1" in found
    assert "contrast x/vw2 - a/none: no row a/none" in found
    assert "the core-minutes of x/scratch are not known" in found


def test_a_plan_with_its_files_shows_how_rows_act_and_their_aids(monkeypatch):
    monkeypatch.setattr("benchmarks.experiment.registration.finetune_experiment", lambda *_: "finetune/vw2_10")
    rows = (replace(FAMILY.rows[0], pretraining="vw2"),)
    monkeypatch.setitem(plan.PRETRAININGS, "vw2", Pretraining(("D_several",)))
    text = registration([replace(FAMILY, rows=rows, contrasts=())])
    (line,) = [line for line in text.splitlines() if line.startswith("| `x/scratch` | no pre-training")]
    assert "| no | `none` | role_embedding, " in line
    assert line.endswith("policy_code_dropout=0.5, pose_weight=1.0 |")


def test_only_a_complete_and_registered_plan_is_run(tmp_path, monkeypatch):
    page = tmp_path / "experiment.md"
    with pytest.raises(SystemExit, match="the plan is not ready:\n    configs/experiment/"):
        program.check_registered([FAMILY], page)
    monkeypatch.setattr(program, "problems", lambda families: iter(()))
    with pytest.raises(SystemExit, match="has no part to generate"):
        program.check_registered(FAMILIES, page)
    page.write_text(f"Text.\n\n{BEGIN.format(command='registration')}\n{END}\n\nMore.\n")
    with pytest.raises(SystemExit, match=r"the plan differs from .*; register it"):
        program.check_registered(FAMILIES, page)
    program.main(["registration", "--page", str(page)])
    program.check_registered(FAMILIES, page)
    text = page.read_text()
    assert text.startswith("Text.\n\n<!-- generated from here on")
    assert text.endswith(f"\n{END}\n\nMore.\n")
    program.main(["registration", "--page", str(page)])
    assert page.read_text() == text


def test_the_registration_in_the_repository_is_what_the_plan_gives():
    assert current_part(program.EXPERIMENT_PAGE, "registration") == registration(FAMILIES).strip()


def rollouts(share, count=20):
    return [
        {
            "sequence": number, "initial_state": {}, "subtasks": ["a"], "solved": int(number < share * count),
            "env_steps": [10], "seed": 0, "instructions": ["x"],
        }
        for number in range(count)
    ]  # fmt: skip


def invented():
    """An archive: vw2 is above scratch by 20, 30 and 25 points; its gate is closed on the fourth seed."""
    archive = Archive()
    note = {"commit": "1a2b3c4", "seconds": 60.0, "cpu_seconds": 120.0, "arguments": [], "program": "p"}
    scores = {"translation": {"r2": 0.0}} | {
        name: {"r2": 0.0} for name in ("x", "y", "z", "roll", "pitch", "yaw", "opening")
    }
    shares = {"scratch": (0.3, 0.4, 0.35), "vw2": (0.5, 0.7, 0.6)}
    for name, by_seed in shares.items():
        for seed, share in enumerate(by_seed, 100):
            tuning = {"acting": "expected" if name == "vw2" else "none", "aids.pose_weight": 0.0}
            archive.jobs[f"finetune/x/{name}/seed_{seed}"] = {**note, "settings": tuning}
            for part in ("single", "chains"):
                archive.jobs[f"{part}/x/{name}/seed_{seed}"] = note
                archive.rollouts[f"{part}/x/{name}/seed_{seed}"] = rollouts(share)
            if name == "vw2":
                aids = {"aids.reader": True, "aids.high_noise": 0.7}
                archive.jobs[f"pretrain/in_domain_vw2/seed_{seed}"] = {**note, "settings": aids}
                kinds = {"moved": {"codes_one_hot": {"linear": {**scores, "x": {"r2": share}}}}}
                report = {"data": [{"name": "D"}], "probe": {"in_scene": {"D": kinds}}}
                archive.probes[f"probe/in_domain_vw2/seed_{seed}"] = report
    archive.failed["gate/x/vw2/seed_103"] = {**note, "reason": "the gate is closed: shuffle ratio on D is 1.00"}
    return archive


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "results.md"
    file.write_text(f"# Results\n\n{BEGIN.format(command='page')}\n{END}\n")
    return file


def test_the_page_has_every_seed_the_answers_and_what_was_lost(page):
    write_results(invented(), [FAMILY], page)
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert (
        "| `x/vw2` | vw2 | 3 of 4 | 60.0 [35.2, 84.8] | 50.0, 70.0, 60.0 | 0.60 [0.35, 0.85] | 0.50, 0.70, 0.60 "
        "| 60.0 | 0.0 | – |"
    ) in text
    assert "| `x/scratch` | no pre-training | 3 of 3 | 35.0" in text
    assert "| *50.5, 0, 1.11* |" in text
    assert "| `x/later` | later | 0 of 2 | not run | not run | not run | not run | not run | not run | – |" in text
    # 20, 30 and 25 points: p = 0.013, twice that after Holm, although the other contrast was never run.
    assert "| `x/vw2` − `x/scratch` | 3 | +25.0 [+12.6, +37.4] | 0.013 | 0.026 | yes | – |" in text
    assert "| `x/vw2` − `x/later` | 0 | not run | – | – | undecided | – |" in text
    assert "| `x/vw2` | `acting=expected` | high_noise=0.7, reader | 2 | 6 | 1a2b3c4 |" in text
    assert "| `x/scratch` | `acting=none` | none | 0 | 6 | 1a2b3c4 |" in text
    assert "- `gate/x/vw2/seed_103`: the gate is closed: shuffle ratio on D is 1.00" in text
    assert "Do gains follow codes" not in text  # three seeds are too few


def test_an_undecided_contrast_says_how_many_seeds_would_decide_it(page):
    archive = invented()
    for seed, share in ((100, 0.35), (101, 0.4), (102, 0.45)):
        archive.rollouts[f"single/x/vw2/seed_{seed}"] = rollouts(share)
    write_results(archive, [FAMILY], page)
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| `x/vw2` − `x/scratch`")]
    # 5, 0 and 10 points.
    assert re.fullmatch(r".* \| 3 \| \+5\.0 \[-7\.4, \+17\.4\] \| 0\.225 \| 0\.451 \| undecided \| 13 \|", line), line


def test_gains_are_compared_with_codes_where_there_are_enough_seeds(page):
    archive = invented()
    for seed, scratch, trained in ((103, 0.3, 0.55), (104, 0.3, 0.35)):
        archive.rollouts[f"single/x/scratch/seed_{seed}"] = rollouts(scratch)
        archive.rollouts[f"single/x/vw2/seed_{seed}"] = rollouts(trained)
        archive.jobs |= {
            f"single/x/{name}/seed_{seed}": archive.jobs["single/x/vw2/seed_100"] for name in ("scratch", "vw2")
        }
        report = json.loads(json.dumps(archive.probes["probe/in_domain_vw2/seed_100"]))
        report["probe"]["in_scene"]["D"]["moved"]["codes_one_hot"]["linear"]["x"]["r2"] = trained
        archive.probes[f"probe/in_domain_vw2/seed_{seed}"] = report
    write_results(archive, [FAMILY], page)
    text = " ".join(page.read_text().split())
    assert re.search(r"with the gain over `x/scratch`: r = \+0\.\d\d \[[+-].*\], p 0\.\d{3}, 5 seeds of vw2\.", text)


def test_the_page_and_its_figures_are_the_same_when_written_again(page):
    write_results(invented(), [FAMILY], page)
    figure = page.parent / "figures" / "family_x.svg"
    before = page.read_bytes(), figure.read_bytes()
    assert "![every seed](figures/family_x.svg)" in page.read_text()
    write_results(invented(), [FAMILY], page)
    assert (page.read_bytes(), figure.read_bytes()) == before
    root = ET.fromstring(figure.read_text())
    assert len(root.findall(f"{SVG}circle")) == 6  # three seeds of two rows
    assert "not run" in [text.text for text in root.findall(f"{SVG}text")]
    with pytest.raises(SystemExit, match="has no part to generate"):
        replace_part(page, "registration", "x")


def test_dots_of_equal_values_are_all_seen_and_lie_where_the_axis_says():
    root = ET.fromstring(seed_figure([Dots("a < b", [40.0, 40.0, 60.0], (20.0, 80.0))], axis="%"))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.findall(f"{SVG}circle")]
    assert len(set(dots)) == 3
    ticks = {text.text: float(text.get("x")) for text in root.findall(f"{SVG}text")}
    assert [x for x, _ in dots] == pytest.approx([ticks["40"], ticks["40"], ticks["60"]], abs=0.1)
    assert "a < b" in ticks
    assert [shift for _, shift in stacked([1.0, 1.0, 1.0, 50.0])] == [0, 6, -6, 0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.77, 1.3, [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, ticks):
    assert axis_ticks(low, high) == ticks
    assert axis_ticks(50, 50)[0] < 50 < axis_ticks(50, 50)[-1]


def test_the_blinded_estimate_shows_no_difference():
    def solved(by_row):
        archive = Archive()
        for name, shares in by_row.items():
            for seed, share in enumerate(shares, 100):
                archive.jobs[f"single/x/{name}/seed_{seed}"] = {}
                archive.rollouts[f"single/x/{name}/seed_{seed}"] = rollouts(share)
        return archive

    scratch, trained, worse = (0.3, 0.4, 0.3, 0.4), (0.7, 0.6, 0.6, 0.7), (0.15, 0.05, 0.05, 0.15)
    # Differences of 40, 20, 30 and 30 points. Seeds after the fourth are not read, rows without a run neither.
    text = program.blinded(solved({"scratch": (*scratch, 1.0), "vw2": (*trained, 0.0)}), FAMILY)
    assert text.startswith(
        "family x (scratch, vw2): sd of a difference 8.2 points (3 degrees); seeds for power 0.8: 4 "
    )
    assert program.blinded(solved({"scratch": scratch, "vw2": worse}), FAMILY) == text
    few = solved({"scratch": scratch, "vw2": trained[:3]})
    assert program.blinded(few, FAMILY) == "family x: its rows have 3 seeds in common, 4 are needed"
    assert program.blinded(solved({"vw2": trained}), FAMILY) == "family x: one row alone has no differences"


def test_the_commands_of_the_queue_and_the_page(tmp_path, page, capsys, monkeypatch):
    (tmp_path / "jobs").mkdir()
    out = ["--out", str(tmp_path)]
    program.main(["pause", *out])
    program.main(["left", *out, "--families", "b", "e", "--assets", "x"])
    # Kinds in the order in which they are run.
    assert re.search(
        r"\d+ jobs and 0\.0 hours left, without \d+ kinds .* \(record/D_several, frames/.*, \.\.\.\); paused\n",
        capsys.readouterr().out,
    )
    program.main(["resume", *out])
    program.main(["blinded", *out, "--families", "a"])
    assert "family a: its rows have 0 seeds in common, 4 are needed" in capsys.readouterr().out
    monkeypatch.setattr(program, "problems", lambda families: (f"{family.letter} is missing" for family in families))
    with pytest.raises(SystemExit, match=r"^b is missing$"):
        program.main(["missing", "--families", "b"])
    with pytest.raises(SystemExit, match="the plan is not ready"):
        program.main(["run", *out])
    with pytest.raises(SystemExit, match="nothing is kept"):
        program.main(["keep", *out, "--archive", str(tmp_path / "archive")])
    program.main(["page", "--archive", str(tmp_path / "archive"), "--page", str(page)])
    assert "| `c/vw2` − `c/scratch` | 0 | not run | – | – | undecided | – |" in page.read_text()
    assert len(list((tmp_path / "figures").iterdir())) == len(FAMILIES)
    with pytest.raises(SystemExit) as status:
        program.main(["pause", *out, "false"])
    assert status.value.code == 1
