"""Bar charts of the page: success in a row, by task and by position; average lengths beside the published ones.

A group is one line of a chart, with one bar for each rollout that has a value there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import CHAIN_LENGTH
from ..statistics import wilson_interval
from .failures import positions
from .run_folders import Rollout
from .tables import PAPER_ROWS, length_cell

SERIES = 6  # colors of the page


def color(index: int) -> int:
    """Return the number of the page's color for the rollout with this index."""
    return index % SERIES + 1


def bar(rollout: Rollout, index: int, *, count: int, total: int) -> dict[str, Any]:
    """Return one bar: a share with its Wilson interval.

    Args:
        rollout: The rollout that the bar belongs to.
        index: Its index on the page.
        count: Numerator.
        total: Denominator.
    """
    # Computed here and not taken from the summary, which has no intervals by task and by position.
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
    """Return the bars of success at 1 to 5 in a row; rollouts on single tasks have one in the first line alone."""
    groups = []
    for i in range(longest(rollouts)):
        bars = []
        for index, r in enumerate(rollouts):
            if i < len(r.summary["success_rates"]):
                total = r.summary["num_sequences"]
                # The summary holds shares; their numerators are whole numbers, so rounding restores them exactly.
                bars.append(bar(r, index, count=round(r.summary["success_rates"][i] * total), total=total))
        groups.append({"name": f"{i + 1} in a row" if i else "1 task", "subtitle": "", "bars": bars})
    return groups


def longest(rollouts: Sequence[Rollout]) -> int:
    """Return the number of subtasks of the longest chains among the rollouts."""
    return max((len(r.summary["success_rates"]) for r in rollouts), default=CHAIN_LENGTH)


def task_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Return the bars of each task, sorted by name; one for each rollout that attempted it."""
    tasks = sorted({task for r in rollouts for task in r.summary["per_task"]})
    groups = []
    for task in tasks:
        # A rollout that never attempted a task has no bar; a bar of 0/0 would look like a failure.
        bars = [
            bar(r, index, count=entry["solved"], total=entry["attempted"])
            for index, r in enumerate(rollouts)
            if (entry := r.summary["per_task"].get(task))
        ]
        instructions = [r.provenance.get("instructions", {}).get(task) for r in rollouts]
        instruction = next((text for text in instructions if text is not None), "")
        groups.append({"name": task.replace("_", " "), "subtitle": instruction, "bars": bars})
    return groups


def never_reached(rollouts: Sequence[Rollout]) -> list[str]:
    """Return the tasks of the chains that no rollout reached."""
    requested = {task for r in rollouts for row in r.rows for task in row["subtasks"]}
    attempted = {task for r in rollouts for task in r.summary["per_task"]}
    return sorted(task.replace("_", " ") for task in requested - attempted)


def position_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Return the bars of success at each position in the chain, among the chains that got there."""
    found = [positions(r.rows) for r in rollouts]
    groups: list[dict[str, Any]] = []
    last = max(map(len, found), default=0)
    for i in range(last):
        bars = [
            bar(r, index, count=there[i].solved, total=there[i].attempted)
            for index, (r, there) in enumerate(zip(rollouts, found, strict=True))
            if i < len(there) and there[i].attempted
        ]
        # No rollout got here, nor to the positions after it: one line for all of them.
        if not bars:
            name = f"subtask {last}" if i + 1 == last else f"subtasks {i + 1} to {last}"
            return [*groups, {"name": name, "subtitle": "no chain got here", "bars": []}]
        groups.append({"name": f"subtask {i + 1}", "subtitle": "", "bars": bars})
    return groups


def length_bars(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Return the bars of average length on the scale 0 to 5: ours with intervals, the published ones without."""
    ours = []
    for index, r in enumerate(rollouts):
        # Single tasks and other chain lengths cannot be compared with the published average lengths.
        if len(r.summary["success_rates"]) == CHAIN_LENGTH:
            low, high = (value / CHAIN_LENGTH for value in r.summary["average_length_ci95"])
            share = r.summary["average_length"] / CHAIN_LENGTH
            text = length_cell(r)
            entry = {"name": r.name, "subtitle": "", "text": text, "share": share, "low": low, "high": high}
            ours.append({**entry, "color": color(index), "published": False})
    published = [
        {
            "name": row.method,
            "subtitle": f"{row.labels} of the labels, {'no latents' if row.pretraining == 'none' else row.pretraining}",
            "text": f"{row.length:.2f}",
            "share": row.length / CHAIN_LENGTH,
            "low": 0.0,
            "high": 0.0,
            "color": 0,
            "published": True,
        }
        for row in PAPER_ROWS
    ]
    # Published rows alone say nothing about the runs of this page.
    return [*ours, *published] if ours else []
