"""Numbers of docs/results.md with the training seed as their unit, and what the archive knows of each job.

A seed stands for everything that was drawn with it: the choice of labels, the fine-tuning and, where there is
pre-training, the dLDM, its codes and the policy. So one value a seed, and a t interval over those; the many rollouts of
one seed are rollouts of one policy and say nothing of another seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import paired_rows, read_rows
from vw2_robot.rollouts.statistics import t95

from .job_queue import read_note

MISSING = "not run"
ONE_SEED = "one seed"
"""stands where an interval would"""


class Runs(NamedTuple):
    """Finished rows by seed."""

    single: dict[int, list[Row]]
    chains: dict[int, list[Row]]


def read_runs(out: Path, arm: str) -> Runs:
    """The rollouts of an arm whose jobs are done."""

    def rows(kind: str) -> dict[int, list[Row]]:
        found = {}
        for folder in sorted((out / kind / arm).glob("seed_*")):
            note = read_note(out, f"{kind}/{arm}/{folder.name}")
            if note is not None and note["done"]:
                found[int(folder.name.removeprefix("seed_"))] = read_rows(folder / "results.jsonl")
        return found

    return Runs(rows("single"), rows("chains"))


def mean_solved(runs: Mapping[int, Sequence[Row]]) -> dict[int, float]:
    """Seed -> subtasks solved in a rollout, on average; of single tasks the share that was solved."""
    return {seed: statistics.mean(row["solved"] for row in rows) for seed, rows in runs.items()}


def share_reached(runs: Mapping[int, Sequence[Row]], count: int) -> dict[int, float]:
    """Seed -> share of chains with at least so many subtasks solved."""
    return {seed: statistics.mean(row["solved"] >= count for row in rows) for seed, rows in runs.items()}


def differences(a: Mapping[int, Sequence[Row]], b: Mapping[int, Sequence[Row]]) -> dict[int, float]:
    """Seed -> mean difference in solved subtasks over the starts that both ran, for seeds that have such."""
    pairs = {seed: paired_rows(a[seed], b[seed]) for seed in a if seed in b}
    return {
        seed: statistics.mean(x["solved"] - y["solved"] for x, y in of_seed)
        for seed, of_seed in pairs.items()
        if of_seed
    }


def seed_interval(values: Iterable[float], *, lowest: float, highest: float) -> tuple[float, float] | None:
    """95 % t interval of the mean over seeds, cut to the range; None for fewer than two."""
    values = list(values)
    if len(values) < 2:
        return None
    mean = statistics.mean(values)
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(lowest, mean - half), min(highest, mean + half)


def over_seeds(values: Mapping[int, float], form: str, *, scale: float, lowest: float, highest: float) -> str:
    """The mean over seeds with its interval, or with the word that there is one seed."""
    if not values:
        return MISSING
    scaled = [scale * value for value in values.values()]
    interval = seed_interval(scaled, lowest=scale * lowest, highest=scale * highest)
    inside = ONE_SEED if interval is None else ", ".join(format(value, form) for value in interval)
    return f"{statistics.mean(scaled):{form}} [{inside}]"


def each_seed(values: Mapping[int, float], form: str, *, scale: float = 1) -> str:
    """The values of all seeds, in order."""
    return ", ".join(format(scale * values[seed], form) for seed in sorted(values)) or MISSING


def setting(note: Mapping[str, Any] | None, key: str) -> Any:
    """What a job was made with; MISSING where the archive does not have it."""
    return MISSING if note is None else note.get("settings", {}).get(key, MISSING)


def core_minutes(note: Mapping[str, Any] | None) -> float:
    """Wall-clock minutes times the threads or processes that the job was given; 0 for a job that is not there."""
    if note is None:
        return 0.0
    cores = [setting(note, key) for key in ("hardware.threads", "workers")]
    return float(note["seconds"]) / 60 * max([1, *(count for count in cores if isinstance(count, int))])
