"""Start states of demonstrations: states in which a task can be done, each reached in a repeatable way.

Start states are those of the evaluation protocol. In half of them the blocks on the table are moved and rotated, and a
large share of the demonstrations begins where another task has just ended, with the gripper still at the drawer or the
lever, because that is where the later subtasks of a chain begin. A `Start` therefore is a state to reset to, and the
actions to execute from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
"""Control steps that the preceding task may take."""
PAUSE_STEPS = (0, 12)
"""Between two tasks the expert continues for 0 to 11 steps; in the evaluation protocol it is 0."""
SETTLE_STEPS = 10
"""Minimum pause after stacking: the oracle counts a stack only if it was at rest at the start."""
FAILED_ATTEMPT_ERROR_M = (0.06, 0.04, 0.02)
"""Largest position error of a failed attempt along x, y and z."""
FAILED_ATTEMPT_STEPS = (10, 60)
"""A failed attempt takes at least 10 and fewer than 60 steps."""
MAX_STARTS = 1000
"""Candidates for a start; in scene B few of them place a block in front of the drawer."""
BLOCK_GAP_M = 0.12
"""Smallest distance between the centers of two scattered blocks."""

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
    """A state of the simulator and the actions executed from there, so that their result can be reached again.

    `robot_obs` [15] and `scene_obs` [24] are what `CalvinEnv.reset` takes; each action is [7].
    """

    robot_obs: NDArray[np.float64]
    scene_obs: NDArray[np.float64]
    actions: tuple[Action, ...]

    def restore(self, env: CalvinEnv) -> None:
        """Bring an environment to the start; bit-exact where its reset mode is "exact"."""
        env.reset_physics(robot_obs=self.robot_obs, scene_obs=self.scene_obs)
        for action in self.actions:
            env.step_physics(action)


def go_to_start(
    env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator, *, failed_attempts: float = 0.0
) -> Start:
    """Bring an environment into a random state in which `task` can be done, and return how it got there.

    Args:
        env: the environment; it is reset.
        task: name of the task.
        oracle: judges the tasks that must come before.
        rng: generator of all random candidates.
        failed_attempts: share of starts that follow a failed attempt at the task, for example with the gripper beside
            the handle or closed on nothing. A learned policy reaches such states by its own errors, so demonstrations
            must show the recovery from them.

    Raises:
        InputError: no such state was found among `MAX_STARTS` candidates.
    """
    if _needed_before(task):
        # Other tasks come first; they do not open the drawer, so it must be open already where the task needs it.
        states = [state for state in all_initial_states() if "drawer" not in task or state["drawer"] == "open"]
    else:
        states = [state for state in all_initial_states() if TASKS[task].apply(state) is not None]
    for _ in range(MAX_STARTS):
        # 1. A start state of the protocol, perhaps with its blocks moved.
        robot_obs, scene_obs = start_state(states[int(rng.integers(len(states)))], env.scene_name)
        if rng.random() < SCATTER_SHARE:
            scatter_blocks(scene_obs, env.scene_name, rng)
        env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        # 2. What must come before the task, or another task that may.
        actions = _do_before(env, task, oracle, rng)
        if actions is None or not feasible(task, observe_world(env)):
            continue
        # 3. Perhaps a failed attempt; it may leave a state in which the task can no longer be done.
        if failed_attempts > 0 and rng.random() < failed_attempts:
            for action in failed_attempt(env, task, rng):
                env.step_physics(action)
                actions.append(action)
        if feasible(task, observe_world(env)):
            return Start(robot_obs, scene_obs, tuple(actions))
    raise InputError(f"no start state for {task} found in scene {env.scene_name} among {MAX_STARTS} candidates")


def scatter_blocks(scene_obs: NDArray[np.float64], scene: str, rng: np.random.Generator) -> None:
    """Move and rotate the blocks that stand on the table, in place, at least `BLOCK_GAP_M` apart.

    Args:
        scene_obs: state of the scene [24], which is changed.
        scene: name of the scene.
        rng: generator of positions and angles.
    """
    low, high = (np.array(corner) for corner in SCENES[scene].surfaces["table"])
    blocks = scene_obs[6:].reshape(3, 6)
    on_table = [block for block in blocks if block[1] < 0.0]  # those on the shelf have y > 0
    for _ in range(100):  # rejection sampling; after 100 tries the blocks stay where they were
        spots = rng.uniform([low[0] + 0.02, -0.14], [high[0] - 0.06, -0.06], size=(len(on_table), 2))
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(spots) for b in spots[:i]]
        if min(gaps, default=1.0) > BLOCK_GAP_M:
            break
    else:
        return
    for block, spot in zip(on_table, spots, strict=True):
        block[:2] = spot
        block[5] = rng.normal(np.pi / 2, 0.5)


def _needed_before(task: str) -> tuple[str, ...]:
    """Return prefixes of the tasks that must come before `task`, because no start state of the protocol allows it."""
    parts = task.split("_")
    if parts[0] in ("place", "stack"):
        return ("lift",)
    if parts[0] == "unstack":
        return ("lift", "stack_block")
    if parts[0] == "lift" and parts[-1] == "drawer":
        return (f"lift_{parts[1]}_block", "place_in_drawer")
    return ()


def _do_before(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> list[Action] | None:
    """Execute the tasks that must, or may, come before `task`; return the actions, None if one failed."""
    needed = _needed_before(task)
    if not needed and rng.random() < CONTINUE_SHARE:
        needed = tuple(str(name) for name in rng.permutation(TASK_GROUPS["basic"])[:1])
    actions: list[Action] = []
    for beginning in needed:
        world = observe_world(env)
        candidates = [name for name in SKILLS if name.startswith(beginning) and name != task and feasible(name, world)]
        if not candidates:
            return None
        done = _do_one(env, candidates[int(rng.integers(len(candidates)))], oracle, rng)
        if done is None:
            return None
        actions += done
    return actions


def failed_attempt(env: CalvinEnv, task: str, rng: np.random.Generator) -> Iterator[Action]:
    """Yield the actions of a failed attempt, made with a random position error.

    Args:
        env: the environment; the caller executes each action before it takes the next.
        task: name of the task.
        rng: generator of the error, of the number of steps and of the expert.
    """
    expert = Demonstrator()
    expert.start(task, env, rng, error=rng.uniform(-1.0, 1.0, size=3) * FAILED_ATTEMPT_ERROR_M)
    for _ in range(int(rng.integers(*FAILED_ATTEMPT_STEPS))):
        yield expert.act(env)


def _do_one(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> list[Action] | None:
    """Execute a task and a short pause after it; return the actions, None if it was not solved in time."""
    expert = Demonstrator()
    expert.start(task, env, rng)
    start_info = env.task_info()
    actions: list[Action] = []
    steps_left = BETWEEN_STEPS
    solved = False
    while steps_left > 0:
        steps_left -= 1
        actions.append(expert.act(env))
        env.step_physics(actions[-1])
        if not solved and oracle.get_task_info_for_set(start_info, env.task_info(), (task,)):
            solved = True
            steps_left = int(rng.integers(*PAUSE_STEPS))
            if task == "stack_block":
                steps_left = max(steps_left, SETTLE_STEPS)
    return actions if solved else None
