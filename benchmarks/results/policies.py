"""The two sections of docs/results.md about a single policy: the packaged one, and one trained with 10 % of the labels.

Intervals are over the rollouts of that policy: Wilson intervals for shares, t intervals over chains for lengths.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from vw2_robot.rollouts.results import paired_difference, per_task
from vw2_robot.rollouts.statistics import mean_interval, wilson_interval

from .archive import Archive
from .reading import paragraph
from .seeds import MISSING, setting

JOINED = {"D_large": ("D", "D_hard", "D_large")}
"""recordings that were joined from others -> those that had to be recorded for it"""
ONE_POLICY = "One policy of one seed; in brackets 95 % intervals over its rollouts."


def package_section(archive: Archive) -> str:
    """Return the section of the packaged policy, as shipped and before its weights were rounded."""
    intro = "`builtin:calvin-tiny`: the weights of one fine-tuning run, rounded to half precision when it was packaged."
    lines = ["## The policy of the package", "", paragraph(intro, ONE_POLICY), ""]
    lines += policy_tables(archive, {"the shipped file": "package", "the weights before rounding": "reference"})
    shipped, before = (archive.rows(f"{stage}/chains") for stage in ("package", "reference"))
    # Both files ran the same chains; the pairs remove the variation of the chains.
    if (found := paired_difference(shipped, before)) is not None:
        mean, low, high, count = found
        usual = {row["sequence"]: row["solved"] for row in before}
        changed = sum(row["solved"] != usual.get(row["sequence"], row["solved"]) for row in shipped)
        lines += [
            paragraph(
                f"Over the {count} chains that both ran, the shipped file solves",
                f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] subtasks more per chain, and {changed} chains solve another",
                "number of subtasks. The two were measured at different commits and maybe on different kinds of CPU,",
                "which changes chains as well.",
            ),
            "",
        ]
    return "\n".join([*lines, origin_paragraph(archive, "reference")])


def few_section(archive: Archive) -> str:
    """Return the section of the policy that was trained as far as possible with 10 % of the labels."""
    lines = ["## A policy trained further with 10 % of the labels", "", ONE_POLICY, ""]
    return "\n".join([*lines, *policy_tables(archive, {"this policy": "few"}), origin_paragraph(archive, "few")])


def policy_tables(archive: Archive, stages: Mapping[str, str]) -> list[str]:
    """Return a table of chains of some policies, and single tasks of the first policy that has them."""
    lines = [
        "| policy | chains | 1 in a row (%) | 2 | 3 | 4 | 5 | average length | single tasks (%) | rollouts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, stage in stages.items():
        chains, single = (archive.rows(f"{stage}/{kind}") for kind in ("chains", "single"))
        solved = [row["solved"] for row in chains]
        cells = [MISSING] * 6
        if solved:
            cells = [*(_share(sum(n >= i for n in solved), len(solved)) for i in range(1, 6)), _length(solved)]
        done = sum(row["solved"] for row in single)
        cells += [_share(done, len(single)) if single else MISSING, str(len(single))]
        lines.append(f"| {name} | {len(solved)} | {' | '.join(cells)} |")
    tried = {name: per_task(archive.rows(f"{stage}/single")) for name, stage in stages.items()}
    name, tasks = next(((name, tasks) for name, tasks in tried.items() if tasks), ("", {}))
    if tasks:
        lines += ["", f"Single tasks of {name}:", "", "| task | solved |", "|---|---|"]
        # Worst first: these tasks are what a reader looks for.
        worst_first = sorted(tasks.items(), key=lambda item: item[1]["solved"] / item[1]["attempted"])
        lines += [f"| {task} | {row['solved']} of {row['attempted']} |" for task, row in worst_first]
    return [*lines, ""]


def origin_paragraph(archive: Archive, stage: str) -> str:
    """Return a paragraph with the demonstrations, labels and minutes behind a policy."""
    tuning = archive.jobs.get(f"{stage}/finetune")
    # The name of the recordings is the last part of their path.
    seen = str(setting(tuning, "data.path")).rsplit("/", 1)[-1]
    parts = [f"data/{name}" for name in JOINED.get(seen, (seen,))]
    fraction = setting(tuning, "label_fraction")
    share = fraction if fraction == MISSING else f"{100 * fraction:.0f} %"
    return paragraph(
        f"Demonstrations: {_demonstrations(archive, parts)}, of which {share} with labels.",
        f"Recording them: {_minutes(archive, parts)} on two cores.",
        f"Training: {_minutes(archive, (f'images/{seen}', f'{stage}/pretrain', f'{stage}/finetune'))}",
        f"on {setting(tuning, 'hardware.threads')} of them.",
    )


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _length(solved: Sequence[int]) -> str:
    low, high = mean_interval(solved, lowest=0, highest=5)
    return f"{statistics.mean(solved):.2f} [{low:.2f}, {high:.2f}]"


def _demonstrations(archive: Archive, recordings: Sequence[str]) -> str:
    """Return how many tasks were demonstrated in recordings, without those for validation."""
    notes = [note for note in (archive.jobs.get(name) for name in recordings) if setting(note, "episodes") != MISSING]
    return str(sum(setting(note, "episodes") * setting(note, "play") for note in notes)) if notes else MISSING


def _minutes(archive: Archive, names: Iterable[str]) -> str:
    notes = [archive.jobs.get(name) for name in names]
    if any(note is None for note in notes):
        return MISSING
    return f"{sum(note['seconds'] for note in notes if note is not None) / 60:.0f} minutes"
