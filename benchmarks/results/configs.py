"""The section of docs/results.md that lists the files of configs/experiment and compares them with the archive.

Settings of the archive are those of the commit of each job; settings of the plan are composed in this checkout. Places,
seeds and facts of the machine are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .archive import Archive
from .job_queue import Job
from .reading import paragraph
from .settings import default_of, recipe, settings_of

ABSENT = "–"
VARIES = ("seed=", "label_seed=", "sequences=", "policy=", "network.like=", "run_dir=", "dldm=", "out=")
"""arguments that do not change the settings that are compared"""
COMMANDS = """
    vw2-record +experiment=record/D out=DATA
    pretrain-on-openx +experiment=pretrain/vw2 data.path=DATA seed=0 run_dir=PRE
    vw2-finetune +experiment=finetune/vw2_10 policy=PRE data.path=DATA seed=0 label_seed=0 run_dir=RUN
    vw2-rollout +experiment=rollout/single policy=RUN run_dir=RUN/single
    vw2-rollout +experiment=rollout/chains policy=RUN run_dir=RUN/chains
"""
_TODAY: dict[tuple[str, ...], dict[str, Any]] = {}


def configuration_section(archive: Archive, methods: Sequence[str], planned: Mapping[str, Job]) -> str:
    """Return the section: the files behind each row, and where a row was made with other settings."""
    lines = [
        "## Configurations",
        "",
        paragraph(
            "Every row is a set of files in [configs/experiment](../configs/experiment), which the commands take as",
            "`+experiment=NAME`. The plan (`benchmarks/results/plan.py`) adds folders, seeds and the chains of each",
            "seed: seed s begins at chain 170 s. Row `vw2_10`, seed 0:",
        ),
        COMMANDS,
        paragraph(
            "Without pre-training, `network.like=PRE` replaces `policy=PRE`; row `package` has",
            "`policy=builtin:calvin-tiny`. Recordings are files of `record`: `D_large` is `D` and `D_hard` joined,",
            "`arms` is video of other robots. The codes are probed with `probe_latents/codes`.",
        ),
        "",
        "| row | labels from | video from | pre-training | fine-tuning | rollouts |",
        "|---|---|---|---|---|---|",
    ]
    rows = {
        method: (f"finetune/{method}/seed_0", f"single/{method}/seed_0", f"chains/{method}/seed_0")
        for method in methods
    }
    rows |= {stage: (f"{stage}/finetune", f"{stage}/single", f"{stage}/chains") for stage in ("few", "reference")}
    rows["package"] = ("reference/finetune", "package/single", "package/chains")
    # The fine-tuning names the labels; the job that it needs names the video.
    for row, (tuning, *rolled) in rows.items():
        if tuning not in planned:
            continue
        job = planned[tuning]
        before = planned[job.needs[0]] if any(item.startswith("policy=") for item in job.arguments) else None
        video = ABSENT if before is None else before.needs[0].removeprefix("images/")
        files = [experiment_of(before), experiment_of(job), ", ".join(experiment_of(planned[name]) for name in rolled)]
        lines.append(f"| `{row}` | {job.needs[1].removeprefix('data/')} | {video} | {' | '.join(files)} |")
    return "\n".join([*lines, "", *changed_settings(archive, planned)])


def experiment_of(job: Job | None) -> str:
    """Return the file of configs/experiment that a job uses."""
    arguments = () if job is None else job.arguments
    return next((f"`{item.split('=', 1)[1]}`" for item in arguments if item.startswith("+experiment=")), ABSENT)


def settings_today(job: Job) -> dict[str, Any]:
    """Return the settings of a job of the plan in this checkout; composed once for all its seeds."""
    key = (job.program, *(item for item in job.arguments if not item.startswith(VARIES)))
    if key not in _TODAY:
        settings = settings_of(job.program, job.arguments)
        assert settings is not None, job.program
        _TODAY[key] = settings
    return _TODAY[key]


def compared_jobs(archive: Archive, planned: Mapping[str, Job]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return job -> key -> its value in the archive and in the plan, where they differ; `ABSENT`: no such key."""
    found = {}
    for name, job in planned.items():
        note = archive.jobs.get(name)
        # Jobs that decode frames train nothing; the programs that read the frames check their size.
        if note is None or "settings" not in note or name.startswith("images/"):
            continue
        found[name] = {
            key: pair
            for key, pair in changes(
                recipe(job.program, note["settings"]), recipe(job.program, settings_today(job))
            ).items()
            # A newer key at its default does what was done before it existed.
            if pair[0] != ABSENT or pair[1] != default_of(job.program, key)
        }
    return found


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return key -> both values, where they differ."""
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted({*a, *b})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def shown(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Return changes as the text of a cell."""
    values = {key: [value if value == ABSENT else json.dumps(value) for value in pair] for key, pair in found.items()}
    return ", ".join(f"`{key}`: {first} → {second}" for key, (first, second) in values.items())


def changed_settings(archive: Archive, planned: Mapping[str, Job]) -> list[str]:
    found = compared_jobs(archive, planned)
    if not found:
        return []
    apart: dict[str, list[str]] = {}
    for name, keys in found.items():
        if keys:
            # Jobs with the same changes share a row of the table.
            apart.setdefault(shown(keys), []).append(name)
    same = len(found) - sum(map(len, apart.values()))
    lines = [
        paragraph(
            f"Of {len(found)} jobs, {same} were made with the settings that these files have today. Settings are not",
            "the whole of it: to reproduce a row, take the commit of its jobs ([cost](#cost)). Since the first of",
            "them, the scripted expert of `vw2-record` has changed (up to c7614ac), so `record/D` gives other",
            "demonstrations today, and the video model assumes a standard deviation of a change of 1 instead of 0.5",
            "(`CHANGE_STD`, e5e4b8d).",
        )
    ]
    if apart:
        lines += [
            "",
            f"The others, as made → today ({ABSENT}: no such setting):",
            "",
            "| job | settings |",
            "|---|---|",
        ]
    return [*lines, *(f"| {', '.join(names)} | {what} |" for what, names in apart.items())]
