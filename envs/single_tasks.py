"""One task at a time (MTLC): each of the 34 tasks from start states of its own, so that every task gets a number.

CALVIN takes these starts from its validation recordings, which nobody needs to download here: 27 of the 34 tasks can be
done in some of the benchmark's 192 start states, and begin there, a different state for each of the first rollouts. The
other seven (placing, stacking, unstacking, lifting from the drawer) need something to happen before; the scripted
expert does that first, and the rollout begins where it ended. So numbers compare with one another, not with MTLC
columns of papers. A start depends on (task, rollout) alone where resets are exact.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

from .calvin import CalvinEnv
from .experts.start_states import go_to_start
from .sequences import TASKS
from .task_wrapper import start_states

MOST_PER_TASK = 1000
PRELUDE = "prelude"  # in an initial state: what the expert's generator is seeded with


def single_tasks(per_task: int) -> list[EvalSequence]:
    """`per_task` starts of each task; number = 1000 * task id + rollout. All tasks once, then all twice, ...

    Raises:
        InputError: more than a thousand of each.
    """
    if per_task > MOST_PER_TASK:
        raise InputError(f"rollouts_per_task={per_task}, expected at most {MOST_PER_TASK}")
    return [
        EvalSequence(MOST_PER_TASK * number + rollout, _start(task, number, rollout), (task,))
        for rollout in range(per_task)
        for number, task in enumerate(TASKS)
    ]


def _start(task: str, number: int, rollout: int) -> dict[str, Any]:
    states = start_states(task)
    if not states:
        return {PRELUDE: [number, rollout]}
    return dict(states[_order(number, len(states))[rollout % len(states)]])


@lru_cache(maxsize=len(TASKS))
def _order(number: int, count: int) -> tuple[int, ...]:
    """The states of task `number` in a shuffled order, so that a few rollouts are not all of one corner."""
    return tuple(int(i) for i in np.random.default_rng(number).permutation(count))


def needs_prelude(sequence: EvalSequence) -> bool:
    """Whether something must happen before the sequence can begin."""
    return PRELUDE in sequence.initial_state


def go_to_single_start(env: CalvinEnv, sequence: EvalSequence, oracle: Any) -> None:
    """Have the expert do what must come before, in this world."""
    rng = np.random.default_rng(sequence.initial_state[PRELUDE])
    go_to_start(env, sequence.subtasks[0], oracle, rng)
