"""Statistics of docs/results.md with the training seed as the unit.

A seed decides the choice of labels, the fine-tuning and, where there is pre-training, the dLDM, its codes and the
policy. So there is one value per seed and a t interval over these values: the many rollouts of a seed are rollouts of
one policy and do not show how much another seed would differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import paired_rows
from vw2_robot.rollouts.statistics import t95

from .archive import Archive

MISSING = "not run"
ONE_SEED = "one seed"
"""stands in place of an interval"""


class Runs(NamedTuple):
    """Rollouts of a method, by seed."""

    single: dict[int, list[Row]]
    chains: dict[int, list[Row]]


def read_runs(archive: Archive, method: str) -> Runs:
    """Return the rollouts of a method."""
    found: dict[str, dict[int, list[Row]]] = {"single": {}, "chains": {}}
    for kind, by_seed in found.items():
        prefix = f"{kind}/{method}/seed_"
        for name in sorted(archive.jobs):
            if name.startswith(prefix):
                by_seed[int(name.removeprefix(prefix))] = archive.rows(name)
    return Runs(**found)


def mean_solved(runs: Mapping[int, Sequence[Row]]) -> dict[int, float]:
    """Return the mean number of subtasks solved, by seed; of single tasks the share solved."""
    return {seed: statistics.mean(row["solved"] for row in rows) for seed, rows in runs.items()}


def share_reached(runs: Mapping[int, Sequence[Row]], count: int) -> dict[int, float]:
    """Return the share of chains with at least `count` subtasks solved, by seed."""
    return {seed: statistics.mean(row["solved"] >= count for row in rows) for seed, rows in runs.items()}


def differences(a: Mapping[int, Sequence[Row]], b: Mapping[int, Sequence[Row]]) -> dict[int, float]:
    """Return the mean difference in solved subtasks over the starts that both ran, for each seed that has such."""
    # Paired by start: the difficulty of a start is the same for both methods and cancels.
    pairs = {seed: paired_rows(a[seed], b[seed]) for seed in a if seed in b}
    return {
        seed: statistics.mean(x["solved"] - y["solved"] for x, y in of_seed)
        for seed, of_seed in pairs.items()
        if of_seed
    }


def seed_interval(values: Iterable[float], *, lowest: float, highest: float) -> tuple[float, float] | None:
    """Return the 95 % t interval of the mean over seeds, cut to the range; None for fewer than two values."""
    values = list(values)
    if len(values) < 2:
        return None
    mean = statistics.mean(values)
    # Student's t with n - 1 degrees of freedom, since n is 2 or 3.
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(lowest, mean - half), min(highest, mean + half)


def over_seeds(values: Mapping[int, float], form: str, *, scale: float, lowest: float, highest: float) -> str:
    """Format the mean over seeds with its interval, or with "one seed" in its place."""
    if not values:
        return MISSING
    scaled = [scale * value for value in values.values()]
    interval = seed_interval(scaled, lowest=scale * lowest, highest=scale * highest)
    inside = ONE_SEED if interval is None else ", ".join(format(value, form) for value in interval)
    return f"{statistics.mean(scaled):{form}} [{inside}]"


def each_seed(values: Mapping[int, float], form: str, *, scale: float = 1) -> str:
    """Format the values of all seeds, in order."""
    return ", ".join(format(scale * values[seed], form) for seed in sorted(values)) or MISSING


def setting(note: Mapping[str, Any] | None, key: str) -> Any:
    """Return a setting of a job; MISSING where the archive does not have it."""
    return MISSING if note is None else note.get("settings", {}).get(key, MISSING)


def core_minutes(note: Mapping[str, Any] | None) -> float:
    """Return wall-clock minutes times the threads or processes of a job; 0 for a job that is not there."""
    if note is None:
        return 0.0
    # Training jobs have threads, rollouts and recordings have worker processes.
    cores = [setting(note, key) for key in ("hardware.threads", "workers")]
    return float(note["seconds"]) / 60 * max([1, *(count for count in cores if isinstance(count, int))])
