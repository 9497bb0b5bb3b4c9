"""The generated part of docs/experiment.md: rows with their files, aids and cost, primary contrasts and their power."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vw2_robot.finetune.config import FinetuneAids
from vw2_robot.pretrain.aids import Aids

from ..results.settings import settings_of
from .gate import FINETUNE
from .jobs import PRETRAIN
from .plan import (
    BUDGET_HOURS,
    FIRST_SEED,
    SD_POINTS,
    Family,
    Row,
    costs,
    experiment_file,
    finetune_experiment,
    paired_seeds,
    problems,
    rows_by_id,
)
from .seed_statistics import ALPHA, power

EFFECTS = (4, 6, 8, 10)
"""points of single tasks"""
SEEDS = (3, 4, 6, 8, 12)
UNKNOWN = "not known"
NONE = "–"


def registration(families: Sequence[Family]) -> str:
    """Return the generated part: families, contrasts, power, cost, and what is missing."""
    lines = ["## Families and rows", ""]
    for family in families:
        lines += [f"### {family.letter}. {family.title}", "", *rows_table(family), ""]
    lines += ["## Primary contrasts", "", *contrasts_table(families), ""]
    lines += ["## Power", "", *power_table(), ""]
    lines += ["## Core-hours", "", *cost_table(families), ""]
    lines += ["## What is missing", ""]
    return "\n".join([*lines, *([f"- {problem}" for problem in problems(families)] or ["Nothing."])])


def rows_table(family: Family) -> Iterator[str]:
    """Yield a table of the rows of a family with their files and aids."""
    yield "| row | method | pre-training | fine-tuning | seeds | gate | acting | aids |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in family.rows:
        tuning = planned_settings(FINETUNE, finetune_experiment(family, row))
        before = None if row.pretraining is None else planned_settings(PRETRAIN, f"pretrain/{row.pretraining}")
        cells = [
            f"`{family.id_of(row)}`",
            row.title,
            NONE if row.pretraining is None else f"`pretrain/{row.pretraining}`",
            f"`{finetune_experiment(family, row)}`",
            f"{row.seeds}",
            "yes" if row.is_gated else "no",
            UNKNOWN if tuning is None else f"`{tuning['acting']}`",
            UNKNOWN
            if tuning is None or (before is None and row.pretraining is not None)
            else ", ".join(aids_of(before, tuning)) or "none",
        ]
        yield f"| {' | '.join(cells)} |"


@functools.cache
def planned_settings(program: str, experiment: str) -> Mapping[str, Any] | None:
    """Return the settings that a file of configs/experiment has today; None where there is no such file."""
    if not experiment_file(experiment).is_file():
        return None
    places = {"policy": "P"} if program == FINETUNE else {}
    given = [f"{key}={value}" for key, value in ({"data.path": "D", "run_dir": "R"} | places).items()]
    return settings_of(program, [f"+experiment={experiment}", *given])


def aids_of(pretraining: Mapping[str, Any] | None, tuning: Mapping[str, Any]) -> list[str]:
    """Return the aids that are on.

    Args:
        pretraining: settings of the pre-training, by dotted key; None without one.
        tuning: those of the fine-tuning.
    """
    before = [] if pretraining is None else Aids(**_aids(pretraining)).names
    return [*before, *FinetuneAids(**_aids(tuning)).names]


def _aids(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("aids."): value for key, value in settings.items() if key.startswith("aids.")}


def contrasts_table(families: Sequence[Family]) -> Iterator[str]:
    """Yield a table of the primary contrasts with the power of their seeds."""
    effects = " | ".join(f"{effect} points" for effect in EFFECTS)
    yield f"| family | first − second | seeds | sd | {effects} |"
    yield f"|---|---|---|---|{'---|' * len(EFFECTS)}"
    for family in families:
        sd = SD_POINTS[family.label_fraction]
        for first, second in family.contrasts:
            seeds = paired_seeds(families, first, second)
            # Alone, and at the strictest step of Holm's correction.
            alphas = (ALPHA, ALPHA / len(family.contrasts))
            cells = [
                " / ".join(f"{power(effect, sd=sd, seeds=seeds, alpha=alpha):.2f}" for alpha in alphas)
                for effect in EFFECTS
            ]
            yield f"| {family.letter} | `{first}` − `{second}` | {seeds} | {sd} | {' | '.join(cells)} |"


def power_table() -> Iterator[str]:
    """Yield a table of the power of a single contrast by label fraction, number of seeds and effect."""
    yield f"| labels | seeds | {' | '.join(f'{effect} points' for effect in EFFECTS)} |"
    yield f"|---|---|{'---|' * len(EFFECTS)}"
    for fraction, sd in SD_POINTS.items():
        for seeds in SEEDS:
            cells = [f"{power(effect, sd=sd, seeds=seeds):.2f}" for effect in EFFECTS]
            yield f"| {100 * fraction:.0f} % (sd {sd}) | {seeds} | {' | '.join(cells)} |"


def cost_table(families: Sequence[Family]) -> Iterator[str]:
    """Yield a table of the core-hours of each row, in the order in which they are run, and of all rows up to it."""
    yield (
        "| row | seeds | new recordings | new pre-trainings | fine-tuning and rollouts "
        f"| up to here, of {BUDGET_HOURS:g} hours |"
    )
    yield "|---|---|---|---|---|---|"
    rows = rows_by_id(families)
    total: float | None = 0.0
    for cost in costs(families):
        parts = (cost.recording, cost.pretraining, cost.tuning)
        total = None if total is None or cost.total is None else total + cost.total
        row = rows[cost.row][1]
        cells = [UNKNOWN if minutes is None else f"{minutes / 60:.1f}" for minutes in (*parts, total)]
        yield f"| `{cost.row}` | {seeds_text(row)} | {' | '.join(cells)} |"


def seeds_text(row: Row) -> str:
    """Return the seeds of a row as a range."""
    return f"{FIRST_SEED} to {FIRST_SEED + row.seeds - 1}"
