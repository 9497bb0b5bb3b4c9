"""The sections of docs/results.md that measure one policy each: that of the package, and that of few labels.

Intervals here are over the rollouts of that policy: Wilson for shares, t over chains for lengths.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import paired_difference, per_task, read_rows
from vw2_robot.rollouts.statistics import mean_interval, wilson_interval

from .job_queue import read_note
from .results_reading import paragraph
from .results_seeds import MISSING, setting

JOINED = {"D_large": ("D", "D_hard", "D_large")}
"""recordings made of others"""
ONE_POLICY = "One policy of one seed; in brackets 95 % intervals over its rollouts."


def package_section(out: Path) -> str:
    """The policy that comes with the package, as shipped and before it was rounded."""
    said = (
        "`builtin:calvin-tiny`: the weights of one fine-tuning run, rounded to half precision when they were packaged."
    )
    lines = ["## The policy of the package", "", paragraph(said, ONE_POLICY), ""]
    lines += _tables(out, {"the shipped file": "package", "the weights before rounding": "reference"})
    shipped, before = (_done_rows(out, f"{stage}/chains") for stage in ("package", "reference"))
    if (found := paired_difference(shipped, before)) is not None:
        mean, low, high, count = found
        usual = {row["sequence"]: row["solved"] for row in before}
        changed = sum(row["solved"] != usual.get(row["sequence"], row["solved"]) for row in shipped)
        lines += [
            paragraph(
                f"Chain by chain over the first {count} of the protocol, which are in random order, the shipped file",
                f"solves {mean:+.2f} [{low:+.2f}, {high:+.2f}] subtasks more, and {changed} chains end elsewhere. The",
                "two were measured at other commits and perhaps on other kinds of CPU, which changes chains as well.",
            ),
            "",
        ]
    return "\n".join([*lines, _made_from(out, "reference")])


def few_section(out: Path) -> str:
    """One policy, taken as far as it goes with a tenth of the labels."""
    lines = ["## As far as it goes with 10 % of the labels", "", ONE_POLICY, ""]
    return "\n".join([*lines, *_tables(out, {"this policy": "few"}), _made_from(out, "few")])


def _tables(out: Path, stages: Mapping[str, str]) -> list[str]:
    """Chains of some policies, single tasks of the first that was asked for them."""
    lines = [
        "| policy | chains | 1 in a row (%) | 2 | 3 | 4 | 5 | average length | single tasks (%) | rollouts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, stage in stages.items():
        chains, single = (_done_rows(out, f"{stage}/{kind}") for kind in ("chains", "single"))
        solved = [row["solved"] for row in chains]
        cells = [MISSING] * 6
        if solved:
            cells = [*(_share(sum(n >= i for n in solved), len(solved)) for i in range(1, 6)), _length(solved)]
        done = sum(row["solved"] for row in single)
        cells += [_share(done, len(single)) if single else MISSING, str(len(single))]
        lines.append(f"| {name} | {len(solved)} | {' | '.join(cells)} |")
    tried = {name: per_task(_done_rows(out, f"{stage}/single")) for name, stage in stages.items()}
    name, tasks = next(((name, tasks) for name, tasks in tried.items() if tasks), ("", {}))
    if tasks:
        lines += ["", f"Single tasks of {name}:", "", "| task | solved |", "|---|---|"]
        worst_first = sorted(tasks.items(), key=lambda item: item[1]["solved"] / item[1]["attempted"])
        lines += [f"| {task} | {row['solved']} of {row['attempted']} |" for task, row in worst_first]
    return [*lines, ""]


def _made_from(out: Path, stage: str) -> str:
    """Demonstrations, labels and minutes behind a policy."""
    tuning = read_note(out, f"{stage}/finetune")
    seen = str(setting(tuning, "data.path")).rsplit("/", 1)[-1]
    parts = [f"data/{name}" for name in JOINED.get(seen, (seen,))]
    fraction = setting(tuning, "label_fraction")
    share = fraction if fraction == MISSING else f"{100 * fraction:.0f} %"
    return paragraph(
        f"Demonstrations: {_demonstrations(out, parts)}, of which {share} with labels.",
        f"Recording them: {_minutes(out, parts)} on two cores.",
        f"Training: {_minutes(out, (f'images/{seen}', f'{stage}/pretrain', f'{stage}/finetune'))}",
        f"on {setting(tuning, 'hardware.threads')} of them.",
    )


def _done_rows(out: Path, name: str) -> list[Row]:
    note = read_note(out, name)
    return read_rows(out / name / "results.jsonl") if note is not None and note["done"] else []


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _length(solved: Sequence[int]) -> str:
    low, high = mean_interval(solved, lowest=0, highest=5)
    return f"{statistics.mean(solved):.2f} [{low:.2f}, {high:.2f}]"


def _demonstrations(out: Path, recordings: Sequence[str]) -> str:
    """How many tasks were demonstrated in recordings, those for validation left out."""
    notes = [note for note in (read_note(out, name) for name in recordings) if setting(note, "episodes") != MISSING]
    return str(sum(setting(note, "episodes") * setting(note, "play") for note in notes)) if notes else MISSING


def _minutes(out: Path, names: Iterable[str]) -> str:
    notes = [read_note(out, name) for name in names]
    if any(note is None for note in notes):
        return MISSING
    return f"{sum(note['seconds'] for note in notes if note is not None) / 60:.0f} minutes"
