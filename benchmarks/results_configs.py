"""The section of docs/results.md that names the files of configs/experiment, and compares them with what was run.

A job of the archive keeps its settings, composed at its commit; those of the plan are composed here and now. Places,
seeds and facts of the machine are left out of the comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .job_queue import Job, read_note
from .results_reading import paragraph
from .settings import default_of, recipe, settings_of

ABSENT = "–"
VARIES = ("seed=", "label_seed=", "sequences=", "policy=", "network.like=", "run_dir=", "dldm=", "out=")
"""words that change no recipe"""
COMMANDS = """
    vw2-record +experiment=record/D out=DATA
    pretrain-on-openx +experiment=pretrain/vw2 data.path=DATA seed=0 run_dir=PRE
    vw2-finetune +experiment=finetune/vw2_10 policy=PRE data.path=DATA seed=0 label_seed=0 run_dir=RUN
    vw2-rollout +experiment=rollout/single policy=RUN run_dir=RUN/single
    vw2-rollout +experiment=rollout/chains policy=RUN run_dir=RUN/chains
"""
_TODAY: dict[tuple[str, ...], dict[str, Any]] = {}


def configuration_section(out: Path, arms: Sequence[str], planned: Mapping[str, Job]) -> str:
    """Which files make which row, and where they are not what the row was made with."""
    lines = [
        "## Configurations",
        "",
        paragraph(
            "Every row is a set of files in [configs/experiment](../configs/experiment), which the commands take as",
            "`+experiment=NAME`. The plan (`benchmarks/results.py`) adds places, seeds and the chains of each seed:",
            "seed s begins at chain 170 s. Row `vw2_10`, seed 0:",
        ),
        COMMANDS,
        paragraph(
            "Where nothing is pre-trained, `network.like=PRE` stands instead of `policy=PRE`; row `package` is",
            "`policy=builtin:calvin-tiny`. Recordings are files of `record`; `D_large` is `D` and `D_hard` joined,",
            "`arms` other robots. The codes are judged with `probe_latents/codes`.",
        ),
        "",
        "| row | labels from | video from | pre-training | fine-tuning | rollouts |",
        "|---|---|---|---|---|---|",
    ]
    rows = {arm: (f"finetune/{arm}/seed_0", f"single/{arm}/seed_0", f"chains/{arm}/seed_0") for arm in arms}
    rows |= {stage: (f"{stage}/finetune", f"{stage}/single", f"{stage}/chains") for stage in ("few", "reference")}
    rows["package"] = ("reference/finetune", "package/single", "package/chains")
    for row, (tuning, *rolled) in rows.items():
        if tuning not in planned:
            continue
        job = planned[tuning]
        before = planned[job.needs[0]] if any(word.startswith("policy=") for word in job.words) else None
        video = ABSENT if before is None else before.needs[0].removeprefix("images/")
        files = [experiment_of(before), experiment_of(job), ", ".join(experiment_of(planned[name]) for name in rolled)]
        lines.append(f"| `{row}` | {job.needs[1].removeprefix('data/')} | {video} | {' | '.join(files)} |")
    return "\n".join([*lines, "", *_made_otherwise(out, planned)])


def experiment_of(job: Job | None) -> str:
    """The file of configs/experiment that a job takes."""
    words = () if job is None else job.words
    return next((f"`{word.split('=', 1)[1]}`" for word in words if word.startswith("+experiment=")), ABSENT)


def settings_today(job: Job) -> dict[str, Any]:
    """The settings that a job of the plan has in this checkout; composed once for all its seeds."""
    key = (job.program, *(word for word in job.words if not word.startswith(VARIES)))
    if key not in _TODAY:
        settings = settings_of(job.program, job.words)
        assert settings is not None, job.program
        _TODAY[key] = settings
    return _TODAY[key]


def compared_jobs(out: Path, planned: Mapping[str, Job]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Job -> where its settings are not those of the plan: key -> as made, today; `ABSENT` for no such key."""
    found = {}
    for name, job in planned.items():
        note = read_note(out, name)
        # Decoding images trains nothing; whoever reads them checks their size.
        if note is None or "settings" not in note or name.startswith("images/"):
            continue
        found[name] = {
            key: pair
            for key, pair in changes(
                recipe(job.program, note["settings"]), recipe(job.program, settings_today(job))
            ).items()
            # A key that came later and stands at its default does what was done before it came.
            if pair[0] != ABSENT or pair[1] != default_of(job.program, key)
        }
    return found


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> both values, where they differ."""
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted({*a, *b})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def shown(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes as text of a cell."""
    values = {key: [value if value == ABSENT else json.dumps(value) for value in pair] for key, pair in found.items()}
    return ", ".join(f"`{key}`: {first} → {second}" for key, (first, second) in values.items())


def _made_otherwise(out: Path, planned: Mapping[str, Job]) -> list[str]:
    found = compared_jobs(out, planned)
    if not found:
        return []
    apart: dict[str, list[str]] = {}
    for name, keys in found.items():
        if keys:
            apart.setdefault(shown(keys), []).append(name)
    same = len(found) - sum(map(len, apart.values()))
    lines = [
        paragraph(
            f"Of {len(found)} jobs, {same} were made with the settings that these files have today. Settings are not",
            "all: whoever wants a row again takes the commit of its jobs ([cost](#cost)). Since the first of them the",
            "expert of `vw2-record` has changed (up to c7614ac), so that `record/D` shows other demonstrations today,",
            "and the video model takes the size of a change for 1 instead of 0.5 (`CHANGE_STD`, e5e4b8d).",
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
