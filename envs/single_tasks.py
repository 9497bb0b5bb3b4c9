"""Single-task evaluation (MTLC): each of the 34 tasks from start states of its own.

CALVIN takes these start states from its validation recordings; here nothing has to be downloaded. 27 of the 34 tasks
can be done in some of the benchmark's 192 start states and begin there, a different one in each of the first rollouts.
The other seven (placing, stacking, unstacking, lifting from the drawer) need another task before; the scripted expert
does that first, and the rollout begins where it ended. The results therefore compare with one another, not with the
MTLC columns of papers. The tasks of `FORKS` have starts of a second kind (`fork_tasks`), where both of their routes are
open and a block stands in the way. A start depends on (task, rollout, seed) alone where resets are exact.

Seeds share the 192 symbolic states, since there are no others. Seed 0 has the benchmark's poses in them; in another
each start has spots, yaws and small displacements of its blocks of its own, and the preludes are others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

from .calvin import CalvinEnv
from .experts.start_states import go_to_start
from .experts.ways import FORKS
from .sequences import TASKS
from .task_wrapper import start_states

MOST_PER_TASK = 1000
PRELUDE = "prelude"  # key in an initial state: the seed of the expert that prepares it
POSES = "poses"  # key in an initial state: the seed of its block poses; without it they are the benchmark's
AT_FORK = "at_fork"  # key in an initial state: both routes of the task must be open


def check_per_task(per_task: int) -> None:
    """Raise an InputError for more rollouts of a task than there are numbers for."""
    if per_task > MOST_PER_TASK:
        raise InputError(f"rollouts_per_task={per_task}, expected at most {MOST_PER_TASK}")


def single_tasks(per_task: int, *, seed: int = 0) -> list[EvalSequence]:
    """Return `per_task` rollouts of each task, numbered 1000 * task id + rollout; all tasks once, then all again.

    Args:
        per_task: 1 to 1000.
        seed: of the start states.

    Raises:
        InputError: `per_task` is above 1000.
    """
    check_per_task(per_task)
    return [single_task(task, rollout, seed=seed) for rollout in range(per_task) for task in TASKS]


def single_task(task: str, rollout: int, *, seed: int = 0) -> EvalSequence:
    """Return one of the rollouts of `single_tasks`.

    Args:
        task: its name.
        rollout: 0 to 999.
        seed: of the start states.
    """
    number = list(TASKS).index(task)
    # A shuffled order, so that few rollouts already cover different states.
    states = shuffled_states(task, seed)
    # Without a start state, the expert prepares one; its seed stands in place of the state.
    start = dict(states[rollout % len(states)]) if states else {PRELUDE: _start_seed(number, rollout, seed)}
    if states and seed:
        start[POSES] = _start_seed(number, rollout, seed)
    return EvalSequence(MOST_PER_TASK * number + rollout, start, (task,))


@lru_cache(maxsize=len(TASKS))
def shuffled_states(task: str, seed: int) -> tuple[dict[str, Any], ...]:
    """Return the start states of a task in the order of its rollouts."""
    number = list(TASKS).index(task)
    states = start_states(task)
    order = np.random.default_rng([number, seed] if seed else number).permutation(len(states))
    return tuple(states[i] for i in order)


def fork_tasks(per_task: int, *, seed: int = 0) -> list[EvalSequence]:
    """Return `per_task` rollouts of each task of `FORKS`, numbered as those of `single_tasks`.

    Args:
        per_task: 1 to 1000.
        seed: of the start states.

    Raises:
        InputError: `per_task` is above 1000.
    """
    check_per_task(per_task)
    return [
        EvalSequence(
            MOST_PER_TASK * number + rollout, {PRELUDE: _start_seed(number, rollout, seed), AT_FORK: True}, (task,)
        )
        for rollout in range(per_task)
        for number, task in enumerate(TASKS)
        if task in FORKS
    ]


def _start_seed(number: int, rollout: int, seed: int) -> list[int]:
    # Seed 0 has the starts of earlier releases, whose seeds have two numbers.
    return [number, rollout, seed] if seed else [number, rollout]


def needs_prelude(sequence: EvalSequence) -> bool:
    """Return whether another task must be done before the sequence can begin."""
    return PRELUDE in sequence.initial_state


def block_poses(sequence: EvalSequence) -> np.random.RandomState | None:
    """Return the generator of a start's block poses; None where they are the benchmark's."""
    seed = sequence.initial_state.get(POSES)
    return None if seed is None else np.random.RandomState(seed)


def go_to_single_start(env: CalvinEnv, sequence: EvalSequence, oracle: Any) -> None:
    """Bring an environment to the start of a sequence that needs a prelude, with the scripted expert.

    Args:
        env: the environment; it is reset.
        sequence: one for which `needs_prelude` is true; its initial state holds the seed of the expert.
        oracle: judges the tasks that must come before.
    """
    rng = np.random.default_rng(sequence.initial_state[PRELUDE])
    go_to_start(env, sequence.subtasks[0], oracle, rng, at_fork=AT_FORK in sequence.initial_state)
