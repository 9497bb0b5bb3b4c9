"""Shares with intervals as the page draws them: success in a row, by task, by place; and lengths beside published ones.

A group is one line of a chart with a bar for each rollout that has something to say there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import CHAIN_LENGTH
from ..statistics import wilson_interval
from .failures import places
from .run_folders import Rollout
from .tables import PAPER_ROWS, length_cell

SERIES = 6  # colors of the page


def color(index: int) -> int:
    """The page's color of the rollout with this number."""
    return index % SERIES + 1


def bar(rollout: Rollout, index: int, *, count: int, total: int) -> dict[str, Any]:
    """One share with its Wilson interval and denominator."""
    low, high = wilson_interval(count, total)
    return {
        "run": rollout.name,
        "color": color(index),
        "count": count,
        "total": total,
        "share": count / total if total else 0.0,
        "low": low,
        "high": high,
    }


def success_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Bars of success at 1 to 5 in a row; single tasks have a bar in the first line alone."""
    groups = []
    for i in range(longest(rollouts)):
        bars = []
        for index, r in enumerate(rollouts):
            if i < len(r.summary["success_rates"]):
                total = r.summary["num_sequences"]
                bars.append(bar(r, index, count=round(r.summary["success_rates"][i] * total), total=total))
        groups.append({"name": f"{i + 1} in a row" if i else "1 task", "words": "", "bars": bars})
    return groups


def longest(rollouts: Sequence[Rollout]) -> int:
    """Subtasks of the longest chains among the rollouts."""
    return max((len(r.summary["success_rates"]) for r in rollouts), default=CHAIN_LENGTH)


def task_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Bars of each task, by name; one for each rollout that attempted it."""
    tasks = sorted({task for r in rollouts for task in r.summary["per_task"]})
    groups = []
    for task in tasks:
        bars = [
            bar(r, index, count=entry["solved"], total=entry["attempted"])
            for index, r in enumerate(rollouts)
            if (entry := r.summary["per_task"].get(task))
        ]
        words = next((r.origin["instructions"][task] for r in rollouts if task in r.origin.get("instructions", {})), "")
        groups.append({"name": task.replace("_", " "), "words": words, "bars": bars})
    return groups


def never_reached(rollouts: Sequence[Rollout]) -> list[str]:
    """Tasks that the chains asked for, but that no rollout got to."""
    asked = {task for r in rollouts for row in r.rows for task in row["subtasks"]}
    return sorted(task.replace("_", " ") for task in asked - {t for r in rollouts for t in r.summary["per_task"]})


def place_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Success at each place of the chain among the chains that got there."""
    found = [places(r.rows) for r in rollouts]
    groups: list[dict[str, Any]] = []
    last = max(map(len, found), default=0)
    for i in range(last):
        bars = [
            bar(r, index, count=there[i].solved, total=there[i].attempted)
            for index, (r, there) in enumerate(zip(rollouts, found, strict=True))
            if i < len(there) and there[i].attempted
        ]
        if not bars:
            name = f"subtask {last}" if i + 1 == last else f"subtasks {i + 1} to {last}"
            return [*groups, {"name": name, "words": "no chain got here", "bars": []}]
        groups.append({"name": f"subtask {i + 1}", "words": "", "bars": bars})
    return groups


def length_bars(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Average lengths on the scale 0 to 5: our chains with intervals, and the published rows without."""
    ours = []
    for index, r in enumerate(rollouts):
        if len(r.summary["success_rates"]) == CHAIN_LENGTH:
            low, high = (value / CHAIN_LENGTH for value in r.summary["average_length_ci95"])
            share = r.summary["average_length"] / CHAIN_LENGTH
            text = length_cell(r)
            entry = {"name": r.name, "words": "", "text": text, "share": share, "low": low, "high": high}
            ours.append({**entry, "color": color(index), "published": False})
    published = [
        {
            "name": row.method,
            "words": f"{row.labels} of the labels, {'no latents' if row.pretraining == 'none' else row.pretraining}",
            "text": f"{row.length:.2f}",
            "share": row.length / CHAIN_LENGTH,
            "low": 0.0,
            "high": 0.0,
            "color": 0,
            "published": True,
        }
        for row in PAPER_ROWS
    ]
    return [*ours, *published] if ours else []
