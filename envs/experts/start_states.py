"""Where demonstrations begin: a state of the world in which a task can be done, reached in a way that can be repeated.

Start states are those of the evaluation protocol; half of them get their table blocks moved and turned, and a good part
of the demonstrations begins where another task just ended, the hand still at the drawer or the lever, since that is
where the later subtasks of a chain begin. So a start is a state to reset to and the actions that lead on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from ..calvin import CalvinEnv
from ..oracle import TaskOracle
from ..scene import SCENES
from ..sequences import TASKS, all_initial_states, start_state
from .demonstrator import SKILLS, Demonstrator, feasible, observe_world
from .motion import Action

SCATTER_SHARE = 0.5
"""Share of demonstrations whose blocks on the table are moved away from the protocol's two spots."""
CONTINUE_SHARE = 0.4
"""Share of demonstrations that begin where another task ended."""
BETWEEN_STEPS = 120
"""Steps that the task before may take."""
PAUSE_STEPS = (0, 12)
"""After a task the expert goes on for fewer than 12 steps, or not at all as in the protocol, before the next."""
SETTLE_STEPS = 10
"""At least so many after stacking: the oracle believes in a stack only if it has seen it at rest."""
MISTAKE_M = (0.06, 0.04, 0.02)
"""Largest error of a mistake along x, y and z."""
MISTAKE_STEPS = (10, 60)
"""A mistake takes at least 10 and fewer than 60 steps."""
MAX_STARTS = 1000
"""Draws of a start; in scene B few place a block before the drawer."""
BLOCK_GAP_M = 0.12

TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(SKILLS),
    "furniture": tuple(task for task in SKILLS if task.startswith(("open", "close", "move", "turn"))),
    "push": tuple(task for task in SKILLS if task.startswith("push") and task != "push_into_drawer"),
    "lift": tuple(task for task in SKILLS if task.startswith("lift") and task.endswith("table")),
    "lift_anywhere": tuple(task for task in SKILLS if task.startswith("lift")),
}
TASK_GROUPS["basic"] = TASK_GROUPS["furniture"] + TASK_GROUPS["push"] + TASK_GROUPS["lift"]


@dataclass(frozen=True)
class Start:
    """A state of the protocol's kind and what was done from there, so that the world can be brought there again."""

    robot_obs: NDArray[np.float64]
    scene_obs: NDArray[np.float64]
    actions: tuple[Action, ...]

    def go(self, env: CalvinEnv) -> None:
        """Bring the world there; to the bit where the reset mode is "exact"."""
        env.reset_physics(robot_obs=self.robot_obs, scene_obs=self.scene_obs)
        for action in self.actions:
            env.step_physics(action)


def go_to_start(
    env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator, *, failed_attempts: float = 0.0
) -> Start:
    """Bring the world into a state in which `task` can be done.

    A share `failed_attempts` of the starts lies behind an attempt at the task with a wrong idea of where things are:
    the hand beside the handle, fingers closed on nothing. Whoever learns from demonstrations gets there by itself,
    and must have seen how one goes on.

    Raises:
        InputError: no such state was found in `MAX_STARTS` draws.
    """
    states = [state for state in all_initial_states() if _may_lead_to(task, state)]
    for _ in range(MAX_STARTS):
        robot_obs, scene_obs = start_state(states[int(rng.integers(len(states)))], env.scene_name)
        if rng.random() < SCATTER_SHARE:
            scatter_blocks(scene_obs, env.scene_name, rng)
        env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        actions = _do_before(env, task, oracle, rng)
        if actions is None or not feasible(task, observe_world(env)):
            continue
        if failed_attempts > 0 and rng.random() < failed_attempts:
            for action in failed_attempt(env, task, rng):
                env.step_physics(action)
                actions.append(action)
        if feasible(task, observe_world(env)):
            return Start(robot_obs, scene_obs, tuple(actions))
    raise InputError(f"no start state for {task} found in scene {env.scene_name} in {MAX_STARTS} draws")


def scatter_blocks(scene_obs: NDArray[np.float64], scene: str, rng: np.random.Generator) -> None:
    """Move and turn the blocks that stand on the table, in place, at least `BLOCK_GAP_M` apart."""
    table = SCENES[scene]
    low, high = (np.array(corner) for corner in table.surfaces["table"])
    blocks = scene_obs[6:].reshape(3, 6)
    on_table = [block for block in blocks if block[1] < 0.0]
    for _ in range(100):
        spots = rng.uniform([low[0] + 0.02, -0.14], [high[0] - 0.06, -0.06], size=(len(on_table), 2))
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(spots) for b in spots[:i]]
        if min(gaps, default=1.0) > BLOCK_GAP_M:
            break
    else:
        return
    for block, spot in zip(on_table, spots, strict=True):
        block[:2] = spot
        block[5] = rng.normal(np.pi / 2, 0.5)


def _may_lead_to(task: str, state: dict[str, Any]) -> bool:
    """Say whether a protocol state suits the task, or the tasks that must come before it."""
    before = _needed_before(task)
    if not before:
        return TASKS[task].apply(state) is not None
    return state["drawer"] == "open" if "drawer" in task else True


def _needed_before(task: str) -> tuple[str, ...]:
    """Beginnings of names of the tasks that a start state of the protocol lacks."""
    words = task.split("_")
    if words[0] in ("place", "stack"):
        return ("lift",)
    if words[0] == "unstack":
        return ("lift", "stack_block")
    if words[0] == "lift" and words[-1] == "drawer":
        return (f"lift_{words[1]}_block", "place_in_drawer")
    return ()


def _do_before(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> list[Action] | None:
    """Do what must, or may, come before the task, and return the actions; None if it went wrong."""
    needed = _needed_before(task)
    if not needed and rng.random() < CONTINUE_SHARE:
        needed = tuple(str(name) for name in rng.permutation(TASK_GROUPS["basic"])[:1])
    actions: list[Action] = []
    for beginning in needed:
        world = observe_world(env)
        choices = [name for name in SKILLS if name.startswith(beginning) and name != task and feasible(name, world)]
        if not choices:
            return None
        done = _do_one(env, choices[int(rng.integers(len(choices)))], oracle, rng)
        if done is None:
            return None
        actions += done
    return actions


def failed_attempt(env: CalvinEnv, task: str, rng: np.random.Generator) -> Iterator[Action]:
    """Try a task for a while, misjudging where things are; each action is to be executed at once."""
    expert = Demonstrator()
    expert.start(task, env, rng, error=rng.uniform(-1.0, 1.0, size=3) * MISTAKE_M)
    for _ in range(int(rng.integers(*MISTAKE_STEPS))):
        yield expert.act(env)


def _do_one(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> list[Action] | None:
    """Do a task without recording it, and let things settle for a moment; None if it went wrong."""
    expert = Demonstrator()
    expert.start(task, env, rng)
    start_info = env.task_info()
    actions: list[Action] = []
    left = BETWEEN_STEPS
    solved = False
    while left > 0:
        left -= 1
        actions.append(expert.act(env))
        env.step_physics(actions[-1])
        if not solved and oracle.get_task_info_for_set(start_info, env.task_info(), (task,)):
            pause = int(rng.integers(*PAUSE_STEPS))
            solved, left = True, max(pause, SETTLE_STEPS) if task == "stack_block" else pause
    return actions if solved else None
