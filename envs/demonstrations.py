"""One demonstration: a start state in which the task makes sense, the expert at work, and the oracle's word on it.

`record_demonstration` is a pure function of its seed: it resets the world exactly, so neither what was recorded before
nor the process that does it shows in a single byte. A run that the oracle does not confirm within `max_steps` is thrown
away and another start is drawn.

Start states are those of the evaluation protocol; half of them get their table blocks moved and turned, and a good part
of the demonstrations begins where another task just ended, the hand still at the drawer or the lever, since that is
where the later subtasks of a chain begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .calvin import CONTROL_HZ, CalvinEnv
from .demonstrator import SKILLS, Demonstrator, feasible, observe_world
from .instructions import load_instructions
from .oracle import TaskOracle
from .scene import SCENES
from .sequences import TASKS, all_initial_states, start_state

SCATTER_SHARE = 0.5
"""Share of demonstrations whose blocks on the table are moved away from the protocol's two spots."""
CONTINUE_SHARE = 0.4
"""Share of demonstrations that begin where another task ended."""
BETWEEN_STEPS = 120
"""Steps that the task before may take."""
MAX_ATTEMPTS = 12
MAX_STARTS = 200
BLOCK_GAP_M = 0.12

TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(SKILLS),
    "furniture": tuple(task for task in SKILLS if task.startswith(("open", "close", "move", "turn"))),
    "push": tuple(task for task in SKILLS if task.startswith("push") and task != "push_into_drawer"),
    "lift": tuple(task for task in SKILLS if task.startswith("lift") and task.endswith("table")),
}
TASK_GROUPS["basic"] = TASK_GROUPS["furniture"] + TASK_GROUPS["push"] + TASK_GROUPS["lift"]


@dataclass(frozen=True)
class Recording:
    """What was seen and done at each of L control steps: action t was executed after picture t was taken."""

    task: str
    instruction: str
    scene: str
    arrays: dict[str, NDArray[Any]]
    """By CALVIN's names, time axis first. `rel_actions` are the executed commands; `actions` the pose they led to.

    A world other than CALVIN's has `rgb_static` and `rel_actions` alone.
    """
    attempts: int
    """How many runs it took until the oracle confirmed one."""
    hz: float = float(CONTROL_HZ)


@dataclass(frozen=True)
class Recorder:
    """How demonstrations are taken."""

    max_steps: int = 128
    tail_steps: int = 4
    """Steps kept after success, so that the last pictures show what success looks like."""
    wrist_camera: bool = False

    def record(self, env: CalvinEnv, task: str, *, seed: Sequence[int]) -> Recording:
        """Demonstrate `task` in `env`, whose reset mode must be "exact" for the bytes to depend on the seed alone.

        Raises:
            InputError: `MAX_ATTEMPTS` runs failed.
        """
        oracle = TaskOracle()
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([*seed, attempt])
            go_to_start(env, task, oracle, rng)
            arrays = self._run(env, task, oracle, rng)
            if arrays is not None:
                sentences = load_instructions("train")[task]
                instruction = sentences[int(rng.integers(len(sentences)))]
                return Recording(task, instruction, env.scene_name, arrays, attempts=attempt + 1)
        raise InputError(
            f"{task} was not demonstrated in {MAX_ATTEMPTS} tries of at most {self.max_steps} steps in scene"
            f" {env.scene_name} with assets {env.assets_dir}; leave this task out, or raise max_steps"
        )

    def _run(
        self, env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator
    ) -> dict[str, NDArray[Any]] | None:
        """Let the expert work; None unless the oracle confirms."""
        expert = Demonstrator()
        expert.start(task, env, rng)
        start_info = env.task_info()
        rows: list[dict[str, Any]] = []
        left = self.max_steps
        solved = False
        while left > 0:
            left -= 1
            row = self._look(env)
            row["rel_actions"] = expert.act(env)
            env.step_physics(row["rel_actions"])
            after = env.robot_obs()
            row["actions"] = np.array([*after[:6], row["rel_actions"][6]])
            rows.append(row)
            if not solved and oracle.get_task_info_for_set(start_info, env.task_info(), (task,)):
                solved = True
                left = self.tail_steps
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]} if solved else None

    def _look(self, env: CalvinEnv) -> dict[str, Any]:
        row: dict[str, Any] = {"rgb_static": env.render_camera("static")}
        if self.wrist_camera:
            row["rgb_gripper"] = env.render_camera("gripper")
        row["robot_obs"], row["scene_obs"] = env.robot_obs(), env.scene_obs()
        return row


def expand_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Replace names of groups by their tasks; keeps the order, drops repetitions.

    Raises:
        InputError: neither a task nor a group.
    """
    tasks: dict[str, None] = {}
    for name in names:
        if name not in TASK_GROUPS and name not in SKILLS:
            raise InputError(
                f"unknown task {name!r}; groups: {', '.join(TASK_GROUPS)}; tasks: {', '.join(sorted(SKILLS))}"
            )
        tasks.update(dict.fromkeys(TASK_GROUPS.get(name, (name,))))
    if not tasks:
        raise InputError(f"no task to demonstrate; name tasks or groups ({', '.join(TASK_GROUPS)})")
    return tuple(tasks)


def go_to_start(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> None:
    """Bring the world into a state in which `task` can be done.

    Raises:
        InputError: no such state was found in `MAX_STARTS` draws.
    """
    states = [state for state in all_initial_states() if _may_lead_to(task, state)]
    for _ in range(MAX_STARTS):
        robot_obs, scene_obs = start_state(states[int(rng.integers(len(states)))], env.scene_name)
        if rng.random() < SCATTER_SHARE:
            scatter_blocks(scene_obs, env.scene_name, rng)
        env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        if _do_before(env, task, oracle, rng) and feasible(task, observe_world(env)):
            return
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


def _do_before(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> bool:
    """Do what must, or may, come before the task; False if it went wrong."""
    needed = _needed_before(task)
    if not needed and rng.random() < CONTINUE_SHARE:
        needed = tuple(str(name) for name in rng.permutation(TASK_GROUPS["basic"])[:1])
    for beginning in needed:
        world = observe_world(env)
        choices = [name for name in SKILLS if name.startswith(beginning) and name != task and feasible(name, world)]
        if not choices:
            return False
        if not _do_one(env, choices[int(rng.integers(len(choices)))], oracle, rng):
            return False
    return True


def _do_one(env: CalvinEnv, task: str, oracle: TaskOracle, rng: np.random.Generator) -> bool:
    """Do a task without recording it, and let things settle for a moment."""
    expert = Demonstrator()
    expert.start(task, env, rng)
    start_info = env.task_info()
    for _ in range(BETWEEN_STEPS):
        env.step_physics(expert.act(env))
        if oracle.get_task_info_for_set(start_info, env.task_info(), (task,)):
            for _ in range(int(rng.integers(2, 14))):
                env.step_physics(expert.act(env))
            return True
    return False
