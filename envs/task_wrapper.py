"""The task of an environment: one of the 34 tasks, its instruction, its start states and its success criterion.

`CalvinEnv` uses it in task mode; the protocol of chains (benchmark.py) calls the task oracle itself. Needs no PyBullet.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .instructions import load_instructions
from .option_validation import check_choice
from .oracle import TaskOracle
from .sequences import TASKS, all_initial_states, start_state


class TaskWrapper:
    """A task that is solved once it has happened since `begin`.

    Args:
        name: of the task.

    Raises:
        InputError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        self.name = check_choice("task", name, TASKS)
        (self.instruction,) = load_instructions("validation")[name]
        self._start_info: Mapping[str, Any] = {}

    def begin(self, info: Mapping[str, Any]) -> None:
        """Set the moment from which the task counts; `info` is what `CalvinEnv.task_info` returns there."""
        self._start_info = info

    def is_solved(self, info: Mapping[str, Any]) -> bool:
        """Return whether the task has happened between `begin` and the moment of `info`."""
        return bool(_oracle().get_task_info_for_set(self._start_info, info, (self.name,)))

    def sample_start(self, scene: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return `robot_obs` [15] and `scene_obs` [24] of a random start state in which the task can be done.

        Raises:
            InputError: there is no such start state.
        """
        states = start_states(self.name)
        if not states:
            raise InputError(
                f"task {self.name!r} can be done in none of the benchmark's start states: something must happen before "
                "it (a block lifted, stacked or put into the drawer). Pass the options robot_obs and scene_obs of a "
                "moment in which it can begin, or have the task before it done and then call "
                f"env.unwrapped.begin_task({self.name!r})"
            )
        # Symbolic state and scene determine the numbers; only the choice of the state is random.
        return start_state(states[int(rng.integers(len(states)))], scene)


@lru_cache(maxsize=len(TASKS))
def start_states(task: str) -> tuple[dict[str, Any], ...]:
    """Return those of the 192 symbolic start states in which `task` can be done; none for 7 of the 34 tasks."""
    return tuple(state for state in all_initial_states() if TASKS[task].apply(state) is not None)


@lru_cache(maxsize=1)
def _oracle() -> TaskOracle:
    """Return the one oracle of the process; it has no state."""
    return TaskOracle()
