"""Failure analysis: where and when chains ended, by position in the chain, by task and by steps used.

Computed from rows alone; report.py puts the results on the page. A solved subtask has the steps it took; an unsolved
one reached the step limit and ended its chain. Chains that ask for a covered block are listed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..evaluate import Row

STEP_BINS = 18


class PositionStats(NamedTuple):
    """What happened at one position of the chain.

    number: from 1. attempted: chains that got there. solved: those that solved the subtask.
    """

    number: int
    attempted: int
    solved: int


class Ending(NamedTuple):
    """One task as the end of chains.

    by_position: chains that it ended as 1st, 2nd, ... subtask. median_steps: control steps where it was solved.
    """

    task: str
    attempted: int
    failed: int
    by_position: list[int]
    median_steps: float | None


class StepHistogram(NamedTuple):
    """Control steps of solved subtasks: counts in equally wide bins of [0, limit]."""

    counts: list[int]
    limit: int
    solved: int
    failed: int
    median: float
    ninetieth: float
    late: int
    """solved in the last tenth of the limit: a little slower, and they would count as failed"""


def positions(rows: Sequence[Row]) -> list[PositionStats]:
    """Return success at each position of the chain, among the chains that got there."""
    longest = max((len(row["subtasks"]) for row in rows), default=0)
    found = []
    for i in range(longest):
        reached = [row for row in rows if len(row["env_steps"]) > i]
        found.append(PositionStats(i + 1, len(reached), sum(row["solved"] > i for row in reached)))
    return found


def task_positions(rows: Sequence[Row]) -> dict[str, list[PositionStats]]:
    """Return for each task its attempts and successes at each position of the chain, sorted by task."""
    length = max((len(row["subtasks"]) for row in rows), default=0)
    attempted: dict[str, list[int]] = {}
    solved: dict[str, list[int]] = {}
    for row in rows:
        for position, task in enumerate(row["subtasks"][: len(row["env_steps"])]):
            attempted.setdefault(task, [0] * length)[position] += 1
            solved.setdefault(task, [0] * length)[position] += position < row["solved"]
    return {
        task: [PositionStats(i + 1, count, solved[task][i]) for i, count in enumerate(counts)]
        for task, counts in sorted(attempted.items())
    }


def endings(rows: Sequence[Row]) -> list[Ending]:
    """Return the tasks that ended a chain, the most frequent first."""
    length = max((len(row["subtasks"]) for row in rows), default=0)
    attempted: dict[str, int] = {}
    ended: dict[str, list[int]] = {}
    steps_of_solved: dict[str, list[int]] = {}
    for row in rows:
        # env_steps is shorter than subtasks where the chain ended early: zip stops at the failed subtask.
        for position, (task, env_steps) in enumerate(zip(row["subtasks"], row["env_steps"], strict=False)):
            attempted[task] = attempted.get(task, 0) + 1
            if position < row["solved"]:
                steps_of_solved.setdefault(task, []).append(env_steps)
            else:
                ended.setdefault(task, [0] * length)[position] += 1
    found = []
    for task, counts in ended.items():
        median = float(np.median(steps_of_solved[task])) if task in steps_of_solved else None
        found.append(Ending(task, attempted[task], sum(counts), counts, median))
    return sorted(found, key=lambda one: (-one.failed, one.task))


def step_histogram(rows: Sequence[Row], *, limit: int | None) -> StepHistogram | None:
    """Return how many control steps solved subtasks took; None without a solved one.

    Args:
        rows: The finished chains.
        limit: Control steps that a subtask may take; None: unknown, the most that any took.
    """
    solved = [env_steps for row in rows for env_steps in row["env_steps"][: row["solved"]]]
    if not solved:
        return None
    end = max(limit or 0, max(solved))
    # The same range for all rollouts with one limit, so that their histograms can be compared.
    counts, _ = np.histogram(solved, bins=STEP_BINS, range=(0, end))
    failed = sum(len(row["env_steps"]) > row["solved"] for row in rows)
    late = sum(env_steps > 0.9 * end for env_steps in solved)
    return StepHistogram(
        counts.tolist(),
        end,
        len(solved),
        failed,
        float(np.median(solved)),
        float(np.percentile(solved, 90)),
        late,
    )


def covered_chains(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return number, subtask and outcome of the chains among `rows` that ask for a covered block."""
    found = []
    for row in rows:
        position = covered_request(row["subtasks"])
        if position is not None:
            outcome = f"ended at subtask {row['solved'] + 1}, before the request"
            if row["solved"] > position:
                outcome = "request solved"
            elif row["solved"] == position:
                outcome = "ended at the request"
            found.append({"number": row["sequence"], "request": row["subtasks"][position], "outcome": outcome})
    return found


def covered_request(subtasks: Sequence[str]) -> int | None:
    """Return the position in the chain of a request for a block that the sliding door covers; None without one.

    place_in_slider puts the held block into the open compartment; each move of the door covers that compartment or
    opens it again. The reference records the block in the other compartment and so overlooks these chains
    (docs/simulator.md).

    Args:
        subtasks: Task names of the chain, in order.
    """
    held = ""  # color of the block in the gripper
    covered: dict[str, bool] = {}  # block in the slider -> whether the door covers it
    for position, task in enumerate(subtasks):
        if task.startswith("lift_"):
            held = task.split("_")[1]
            if task.endswith("_slider") and covered.get(held):
                return position
            covered.pop(held, None)
        elif task == "place_in_slider":
            covered[held] = False
        elif task.startswith("move_slider"):
            covered = {block: not behind for block, behind in covered.items()}
    return None


def average_length_without(rows: Sequence[Row], numbers: Sequence[int]) -> float | None:
    """Return the average length over all chains but those with `numbers`; None where there is no other."""
    others = [row["solved"] for row in rows if row["sequence"] not in numbers]
    return float(np.mean(others)) if others else None
