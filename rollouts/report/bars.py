"""Bar charts and the heat map of the page: success in a row, by position and by task; average lengths beside others.

A group is one line of a chart, with one bar for each rollout that has a value there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import CHAIN_LENGTH
from ..statistics import wilson_interval
from .failures import positions, task_positions
from .run_folders import Rollout
from .standing import Yardstick, yardsticks_of
from .tables import PAPER_ROWS, length_cell, rate_cells

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


def task_table(rollouts: Sequence[Rollout], cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the heat map of tasks: a column for each rollout; a single one also has its positions in the chain.

    Args:
        rollouts: The rollouts of the page.
        cards: The videos of the page; each row leads to one of a success and one of a failure.

    Returns:
        "positions": number of columns for positions, and "rows" with name, instruction, cells and videos.
    """
    # A task at a position of a single chain says nothing; the columns are for rollouts with many chains.
    by_position = task_positions(rollouts[0].rows) if len(rollouts) == 1 and longest(rollouts) > 1 else {}
    shown: dict[tuple[str, str], str] = {}
    for card in cards:
        for subtask in card["subtasks"]:
            shown.setdefault((subtask["task"], subtask["state"]), card["id"])
    rows = []
    for task in sorted({task for r in rollouts for task in r.summary["per_task"]}):
        entries = [r.summary["per_task"].get(task) for r in rollouts]
        # A rollout that never attempted a task has an empty cell; 0/0 would look like a failure.
        cells = [
            bar(r, index, count=entry["solved"], total=entry["attempted"]) if entry else None
            for index, (r, entry) in enumerate(zip(rollouts, entries, strict=True))
        ]
        cells += [
            bar(rollouts[0], 0, count=at.solved, total=at.attempted) if at.attempted else None
            for at in by_position.get(task, [])
        ]
        instructions = [r.provenance.get("instructions", {}).get(task) for r in rollouts]
        rows.append(
            {
                "name": task.replace("_", " "),
                "subtitle": next((text for text in instructions if text is not None), ""),
                "cells": cells,
                "videos": [(state, shown[task, state]) for state in ("solved", "failed") if (task, state) in shown],
            }
        )
    return {"positions": longest(rollouts) if by_position else 0, "rows": rows}


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


def standing(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Return the bars of the first screen: what the rollouts reached, and policies measured on the same problems."""
    entries = []
    yardsticks: list[Yardstick] = []
    for index, r in enumerate(rollouts):
        length = len(r.summary["success_rates"])
        low, high = (value / length for value in r.summary["average_length_ci95"])
        share = r.summary["average_length"] / length
        if length == 1:
            # Of single tasks the average length is the success rate, for which Wilson's interval is the right one.
            low, high = r.summary["success_intervals95"][0]
        entries.append(
            {
                "name": r.name,
                "subtitle": "" if r.policy == r.name else r.policy,
                "text": length_cell(r) if length > 1 else f"{rate_cells(r)[0].replace(' ', ' % ', 1)}",
                "share": share,
                "low": low,
                "high": high,
                "color": color(index),
                "published": False,
            }
        )
        yardsticks += [one for one in yardsticks_of(r) if one not in yardsticks]
    return entries + [
        {
            "name": one.name,
            "subtitle": one.measured,
            "text": one.text,
            "share": one.share,
            "low": one.low,
            "high": one.high,
            "color": 0,
            "published": True,
        }
        for one in yardsticks
    ]


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
