"""Where and when chains ended: by place in the chain, by task, by steps used; and which ask for a covered block.

Arithmetic on rows alone; report.py puts the answers on the page. A subtask that is solved has the steps it took; one
that is not ran into the limit and ended its chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..evaluate import Row

STEP_BINS = 18


class Place(NamedTuple):
    """What happened at one place of the chain. attempted: chains that got there."""

    number: int
    attempted: int
    solved: int


class Ending(NamedTuple):
    """One task as the end of chains. by_place: chains it ended as 1st, 2nd, ... subtask; median_steps: where solved."""

    task: str
    attempted: int
    failed: int
    by_place: list[int]
    median_steps: float | None


class Steps(NamedTuple):
    """Steps of solved subtasks: counts in equally wide bins of [0, limit]."""

    counts: list[int]
    limit: int
    solved: int
    failed: int
    median: float
    ninetieth: float
    late: int
    """solved in the last tenth of the limit: had they been slower, they would count as failed"""


def places(rows: Sequence[Row]) -> list[Place]:
    """Success at each place of the chain, among the chains that got there."""
    longest = max((len(row["subtasks"]) for row in rows), default=0)
    found = []
    for i in range(longest):
        there = [row for row in rows if len(row["env_steps"]) > i]
        found.append(Place(i + 1, len(there), sum(row["solved"] > i for row in there)))
    return found


def endings(rows: Sequence[Row]) -> list[Ending]:
    """Tasks that ended a chain, the most frequent first."""
    length = max((len(row["subtasks"]) for row in rows), default=0)
    tried: dict[str, int] = {}
    ended: dict[str, list[int]] = {}
    taken: dict[str, list[int]] = {}
    for row in rows:
        for place, (task, steps) in enumerate(zip(row["subtasks"], row["env_steps"], strict=False)):
            tried[task] = tried.get(task, 0) + 1
            if place < row["solved"]:
                taken.setdefault(task, []).append(steps)
            else:
                ended.setdefault(task, [0] * length)[place] += 1
    found = [
        Ending(task, tried[task], sum(by), by, float(np.median(taken[task])) if task in taken else None)
        for task, by in ended.items()
    ]
    return sorted(found, key=lambda one: (-one.failed, one.task))


def step_histogram(rows: Sequence[Row], *, limit: int | None) -> Steps | None:
    """How long solved subtasks took; None without one. `limit`: steps a subtask may take, or the most that any took."""
    solved = [steps for row in rows for steps in row["env_steps"][: row["solved"]]]
    if not solved:
        return None
    most = max(solved)
    end = max(limit or 0, most)
    counts, _ = np.histogram(solved, bins=STEP_BINS, range=(0, end))
    failed = sum(len(row["env_steps"]) > row["solved"] for row in rows)
    late = sum(steps > 0.9 * end for steps in solved)
    return Steps(
        counts.tolist(),
        end,
        len(solved),
        failed,
        float(np.median(solved)),
        float(np.percentile(solved, 90)),
        late,
    )


def covered_chains(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What became of the chains that ask for a covered block, as far as these rows hold them."""
    found = []
    for row in rows:
        place = covered_request(row["subtasks"])
        if place is not None:
            outcome = f"ended at subtask {row['solved'] + 1}, before it mattered"
            if row["solved"] > place:
                outcome = "solved all the same"
            elif row["solved"] == place:
                outcome = "ended at that request"
            found.append({"number": row["sequence"], "request": row["subtasks"][place], "outcome": outcome})
    return found


def covered_request(subtasks: Sequence[str]) -> int | None:
    """The place in the chain where a block is asked for that the door covers; None in a chain without.

    place_in_slider puts the held block where the door is not; each move of the door covers that compartment or opens
    it again. The reference books the block into the other one (Calvin specification Q21, docs/simulator.md).
    """
    held = ""
    covered: dict[str, bool] = {}
    for place, task in enumerate(subtasks):
        if task.startswith("lift_"):
            held = task.split("_")[1]
            if task.endswith("_slider") and covered.get(held):
                return place
            covered.pop(held, None)
        elif task == "place_in_slider":
            covered[held] = False
        elif task.startswith("move_slider"):
            covered = {block: not behind for block, behind in covered.items()}
    return None


def average_length_without(rows: Sequence[Row], numbers: Sequence[int]) -> float | None:
    """Average length over the other chains; None where there is no other."""
    others = [row["solved"] for row in rows if row["sequence"] not in numbers]
    return float(np.mean(others)) if others else None
