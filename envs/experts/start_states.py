"""Start states of demonstrations: states in which a task can be done, each reached in a repeatable way.

Start states are those of the evaluation protocol. In half of them the blocks on the table are moved and rotated, and a
large share of the demonstrations begins where another task has just ended, with the gripper still at the drawer or the
lever, because that is where the later subtasks of a chain begin. A `Start` therefore is a state to reset to, and the
actions to execute from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from ..calvin import CalvinEnv
from ..oracle import TaskOracle
from ..scene import SCENES
from ..sequences import TASKS, all_initial_states, start_state
from .block_skills import cross_over, wait_before
from .block_states import blocks_before_drawer
from .demonstrator import SKILLS, Demonstrator, feasible, observe_world
from .motion import BLOCK_COLORS, Action, EndEffector, Motion, Style, vector
from .ways import FORKS, routes

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
RANDOM_MOTION_STEPS = (8, 41)
"""A random motion takes at least 8 and fewer than 41 steps: with its speeds up to 0.8 m and 115 degrees."""
LOWEST_RANDOM_MOTION_M = 0.52
"""Height below which a random motion goes up; blocks on the table are at 0.46 m."""
FORK_SHARE = 0.5
"""Share of the starts near a goal that are at a fork, where the task has one."""
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
    env: CalvinEnv,
    task: str,
    oracle: TaskOracle,
    rng: np.random.Generator,
    *,
    failed_attempts: float = 0.0,
    near_starts: float = 0.0,
    at_fork: bool = False,
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
        near_starts: share of starts near the goal, where gripper or wrist are next to move, or where a block stands in
            the way; see `near_start`.
        at_fork: whether the start must leave open both routes of a task of `FORKS`, with the block in the way.

    Raises:
        InputError: no such state was found among `MAX_STARTS` candidates.
    """
    if _needed_before(task):
        # Other tasks come first; they do not open the drawer, so it must be open already where the task needs it.
        states = [state for state in all_initial_states() if "drawer" not in task or state["drawer"] == "open"]
    else:
        states = [state for state in all_initial_states() if TASKS[task].apply(state) is not None]
    # Before the first candidate, since a fork is rarer than other starts.
    is_near = at_fork or (near_starts > 0 and rng.random() < near_starts)
    if is_near and task in FORKS:
        at_fork = at_fork or rng.random() < FORK_SHARE
    if at_fork and task == "stack_block":  # two blocks on the table, and the third where it can be lifted
        shelf = [f"lift_{color}_block_slider" for color in BLOCK_COLORS]
        states = [
            state
            for state in states
            if list(state.values()).count("table") == 2 and any(TASKS[lift].apply(state) is not None for lift in shelf)
        ]
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
        # 3. Perhaps a failed attempt, or the beginning of the task; the task may then no longer be possible.
        if failed_attempts > 0 and rng.random() < failed_attempts:
            actions += execute(env, failed_attempt(env, task, rng))
        if is_near:
            actions += execute(env, near_start(env, task, rng, at_fork=at_fork))
        world = observe_world(env)
        if feasible(task, world) and (not at_fork or routes(task, world) == FORKS[task]):
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


def random_motion(env: CalvinEnv, rng: np.random.Generator) -> Iterator[Action]:
    """Yield the actions of a straight motion with a rotation about any axis, gripper open or closed.

    In the protocol a task begins where the policy left the arm after others. The expert leaves it upright to a tenth of
    a degree, a policy does not; so demonstrations must begin from any pose, too.

    Args:
        env: the environment; the caller executes each action before it takes the next.
        rng: generator of directions, speeds, gripper and number of steps.
    """
    push, rotation = (axis / np.linalg.norm(axis) * rng.uniform() for axis in rng.normal(size=(2, 3)))
    gripper = rng.choice((-1.0, 1.0))
    for _ in range(int(rng.integers(*RANDOM_MOTION_STEPS))):
        if env.robot.tcp_pose()[0][2] < LOWEST_RANDOM_MOTION_M:
            push[2] = abs(push[2])
        yield np.array([*push, *rotation, gripper])


def near_start(env: CalvinEnv, task: str, rng: np.random.Generator, *, at_fork: bool = False) -> Iterator[Action]:
    """Yield the actions that lead near the goal of a task: to where gripper or wrist are next to move.

    Before a push the closed fingers wait on the side of the block to which it leads, so that they must go around it.
    Before a lift or a rotation the gripper is at the grasp, still open; before placing in the drawer, at the place of
    release. At a fork it is over the block to lift, with the wrist across it. Other tasks have no such start.

    Args:
        env: the environment; the caller executes each action before it takes the next.
        task: name of the task.
        rng: generator of all random choices.
        at_fork: whether both routes of a task of `FORKS` must stay open.
    """
    verb, color, *rest = task.split("_")
    if task == "push_into_drawer":
        before = blocks_before_drawer(observe_world(env))
        if before:
            yield from _moved(env, functools.partial(wait_before, color=before[0], way=vector(0.0, -1.0, 0.0)), rng)
    elif verb == "push":
        way = vector(1.0 if rest[-1] == "right" else -1.0, 0.0, 0.0)
        yield from _moved(env, functools.partial(wait_before, color=color, way=way), rng)
    elif verb == "lift" and rest[-1] != "slider" and at_fork:
        yield from _moved(env, functools.partial(cross_over, color=color), rng)
    elif task == "place_in_drawer" or (verb in ("lift", "rotate") and not at_fork):
        expert = Demonstrator()
        expert.start(task, env, rng)
        action = expert.act(env)
        grip = action[6]
        for _ in range(BETWEEN_STEPS):
            yield action
            action = expert.act(env)
            if action[6] != grip:  # the fingers are about to close or to open
                return


def _moved(env: CalvinEnv, motion: Callable[[EndEffector], Motion], rng: np.random.Generator) -> Iterator[Action]:
    """Yield the actions of a motion from the present state."""
    end_effector = EndEffector(observe_world(env), rng, Style.sample(rng))
    for action in motion(end_effector):
        yield action
        end_effector.world = observe_world(env)


def execute(env: CalvinEnv, actions: Iterator[Action]) -> list[Action]:
    """Execute actions that are chosen one by one, and return them."""
    done = []
    for action in actions:
        env.step_physics(action)
        done.append(action)
    return done


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
