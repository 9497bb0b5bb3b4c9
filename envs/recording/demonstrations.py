"""Recordings: demonstrations of one task or of several in a row, each confirmed by the task oracle.

`Recorder.record` is a pure function of its seed: it resets the simulator exactly, so no byte depends on earlier
recordings or on the process. It works in two passes. The first simulates without images, since rendering costs many
times what physics costs; unless the oracle confirms every task within `max_steps`, and again at the end of its window,
the attempt is dropped and another start is sampled. The second pass executes the same actions again, bit-exact, and
renders every step; with a sampled appearance it renders the recorded states instead.

With `play` above 1 a recording is play data: a task, a short pause in which the expert continues, another task that is
feasible in the state then reached, without a reset. Each task becomes a labeled window; the steps between belong to
none. The first task is given, the others are sampled from the pool, those not yet done first.

With `takeovers` a trained policy begins some of the tasks. What it solves is done and gets no label; otherwise the
expert continues from there, and its part alone is the labeled window. Policy and expert together are judged from the
beginning of the task, as in an evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin_writer import Label
from vw2_robot.errors import InputError

from ..actions import to_relative_action
from ..calvin import CONTROL_HZ, CalvinEnv
from ..cameras import INTRINSICS
from ..experts.demonstrator import SKILLS, Demonstrator, feasible, observe_world
from ..experts.motion import Action, Perturbations
from ..experts.start_states import (
    FORK_SHARE,
    PAUSE_STEPS,
    TASK_GROUPS,
    Start,
    failed_attempt,
    go_to_start,
    near_start,
    random_motion,
)
from ..experts.ways import Ways, choose_way
from ..instructions import load_instructions
from ..oracle import TaskOracle
from ..rerendering.appearance import sample_scene_appearance
from ..rerendering.rendering import render_video
from .camera_sway import sway
from .takeovers import Takeovers

RecordedAppearance = Literal["scene", "sampled"]
MAX_ATTEMPTS = 20
"""With `play=4` four attempts of ten fail; one recording without a good attempt would end the program."""


@dataclass(frozen=True)
class RecordedDemonstration:
    """One recording of L control steps: action t was executed after image t was taken."""

    scene: str
    labels: tuple[Label, ...]
    """Labels of the tasks, in order; windows do not overlap."""
    arrays: dict[str, NDArray[Any]]
    """By CALVIN's names, time axis first: `actions` [L, 7] is the pose of the next step, `rel_actions` [L, 7] the
    measured motion to it, and `commanded_actions` [L, 7] the action of the expert, which was executed unless a
    perturbation replaced it. Recordings of other robots have `rgb_static` and `commanded_actions` alone.
    """
    failed: tuple[str, ...] = ()
    """The task at which each failed attempt before this recording ended."""
    hz: float = float(CONTROL_HZ)
    annotations: dict[str, Any] = field(default_factory=dict)
    """What a caption of format=video states beside task and instruction, as of block building its key frames."""


@dataclass(frozen=True)
class Recorder:
    """Makes recordings of demonstrations with these settings."""

    max_steps: int = 128
    tail_steps: int = 4
    """Control steps kept after success, so that the last images show the goal state."""
    play: int = 1
    """Number of tasks in one recording."""
    max_window: int | None = None
    """Longest labeled window in steps; earlier steps of the task stay without a label. None: the whole task."""
    wrist_camera: bool = False
    depth: bool = False
    perturbations: float = 0.0
    """Probability of each step to be the first of a push, see `Perturbations`."""
    failed_attempts: float = 0.0
    """Share of tasks that begin after a failed attempt of the expert, see `go_to_start`."""
    ways: Ways = "single"
    """"several": each task is done in a random way, which its label states (experts/ways.py)."""
    near_starts: float = 0.0
    """Share of tasks that begin near their goal, see `near_start`."""
    random_starts: float = 0.0
    """Share of tasks that begin after a random motion of the arm, see `random_motion`."""
    takeovers: Takeovers | None = None
    """The policy that begins some of the tasks; each label states whether the expert took over from it."""
    appearance: RecordedAppearance = "scene"
    """"sampled": textures, colors and light are random, the same throughout a recording; only for static images."""
    camera_sway: int = 0
    """Pixels by which the static image sways at most, see `sway`."""

    def record(
        self, env: CalvinEnv, task: str, *, seed: Sequence[int], pool: Sequence[str] = ()
    ) -> RecordedDemonstration:
        """Record `task`, then `play` - 1 tasks of the pool. The bytes depend on the arguments alone.

        Args:
            env: the environment; its reset mode must be "exact".
            task: the first task.
            seed: of all random candidates.
            pool: the tasks from which the others are sampled.

        Raises:
            InputError: `MAX_ATTEMPTS` attempts failed.
        """
        failed: list[str] = []
        while len(failed) < MAX_ATTEMPTS:
            # A generator of its own for every attempt; the result depends on the seed alone.
            rng = np.random.default_rng([*seed, len(failed)])
            oracle = TaskOracle()
            start = go_to_start(
                env, task, oracle, rng, failed_attempts=self.failed_attempts, near_starts=self.near_starts
            )
            attempt = _Attempt(env, oracle, Perturbations(self.perturbations, rng))
            unsolved = self._simulate(attempt, task, pool, rng)
            if unsolved is None:
                states = _stack(attempt.rows)
                if self.appearance == "scene":
                    images = self._render(env, start, attempt)
                else:
                    images = _render_sampled(env.scene_name, states, seed)
                if self.camera_sway:
                    rng = np.random.default_rng([*seed, MAX_ATTEMPTS + 1])  # beside the attempts' and the appearance's
                    images["rgb_static"] = sway(
                        images["rgb_static"], largest_px=self.camera_sway, hz=CONTROL_HZ, rng=rng
                    )
                arrays = {**images, **states}
                return RecordedDemonstration(env.scene_name, tuple(attempt.labels), arrays, tuple(failed))
            failed.append(unsolved)
        raise InputError(
            f"{task} was not demonstrated in {MAX_ATTEMPTS} attempts of at most {self.max_steps} steps in scene"
            f" {env.scene_name} with assets {env.assets_dir}, not solved: {', '.join(sorted(set(failed)))}; leave that"
            " out, or raise max_steps"
        )

    def _simulate(self, attempt: _Attempt, task: str, pool: Sequence[str], rng: np.random.Generator) -> str | None:
        """Execute all tasks without images; return the one that was not solved, None if all were."""
        done: list[str] = []
        while True:
            # 0. Perhaps the arm has been moved elsewhere.
            if (
                self.random_starts > 0
                and rng.random() < self.random_starts
                and observe_world(attempt.env).held() is None
            ):
                for action in random_motion(attempt.env, rng):
                    attempt.step(action)
                if not feasible(task, observe_world(attempt.env)):
                    return task
            # 1. Perhaps a policy begins the task, or solves it.
            begin = len(attempt.rows)
            instruction, expert, is_solved = None, None, False
            if self.takeovers is not None and rng.random() < self.takeovers.share:
                instruction = _choose_instruction(task, rng)
                is_solved = attempt.solve(task, self.takeovers.act(attempt.env, instruction, rng), begin)
                # Where the block of the task is in the gripper already, the expert would release it first.
                if not is_solved and observe_world(attempt.env).held() in task.split("_"):
                    return task
            # 2. Otherwise the expert solves it.
            if not is_solved:
                expert = self._demonstrate(attempt, task, begin, instruction, rng)
                if expert is None:
                    return task
            done.append(task)
            if len(done) == self.play:
                return None
            # 3. A pause as in play, then the next task.
            # With a held block, a continuing expert would put it down.
            if expert is not None and observe_world(attempt.env).held() is None:
                for _ in range(int(rng.integers(*PAUSE_STEPS))):
                    attempt.step(expert.act(attempt.env))
            following = next_task(attempt.env, pool, done, rng)
            if following is None:
                return task
            task = following
            # 4. Perhaps a failed attempt at it, before its window begins.
            if (
                self.failed_attempts > 0
                and rng.random() < self.failed_attempts
                and observe_world(attempt.env).held() is None
            ):
                for action in failed_attempt(attempt.env, task, rng):
                    attempt.step(action)
                if not feasible(task, observe_world(attempt.env)):
                    return task
            # 5. Perhaps the beginning of it, too.
            if self.near_starts > 0 and rng.random() < self.near_starts:
                for action in near_start(attempt.env, task, rng, at_fork=rng.random() < FORK_SHARE):
                    attempt.step(action)
                if not feasible(task, observe_world(attempt.env)):
                    return task

    def _demonstrate(
        self, attempt: _Attempt, task: str, begin: int, instruction: str | None, rng: np.random.Generator
    ) -> Demonstrator | None:
        """Let the expert solve a task, and label what it did.

        Args:
            attempt: the recording.
            task: name of the task.
            begin: step at which the task began; after it a policy may have acted.
            instruction: that of the policy; None: no policy acted, and the instruction is chosen here.
            rng: generator of all random choices.

        Returns:
            The expert, which can continue; None if the task was not solved.
        """
        # 1. The expert solves the task; a few more steps show the goal state.
        expert = Demonstrator()
        way = choose_way(task, observe_world(attempt.env), rng) if self.ways == "several" else None
        expert.start(task, attempt.env, rng, way=way)
        first = len(attempt.rows)
        actions = (expert.act(attempt.env) for _ in range(self.max_steps))
        if not attempt.solve(task, actions, begin):
            return None
        for _ in range(self.tail_steps):
            attempt.step(expert.act(attempt.env))
        # 2. The window counts only if the oracle confirms the task again at its end: the tail may undo the task, and
        # its effect may begin before a window that is cut. Cut at the front: the end, where it is solved, must stay.
        start = first if self.max_window is None else max(first, len(attempt.rows) - self.max_window)
        if not attempt.holds(task, begin if start == first else start):
            return None
        names = [] if way is None else [str(way)]
        if self.takeovers is not None:
            names.append("expert" if instruction is None else "takeover")
        text = _choose_instruction(task, rng) if instruction is None else instruction
        attempt.labels.append(Label(task, text, start, len(attempt.rows) - 1, ", ".join(names)))
        return expert

    def _render(self, env: CalvinEnv, start: Start, attempt: _Attempt) -> dict[str, NDArray[Any]]:
        """Execute the actions of an attempt again and render every step; return the images, time axis first."""
        start.restore(env)
        frames: list[dict[str, NDArray[Any]]] = []
        for row, action in zip(attempt.rows, attempt.executed, strict=True):
            # A replay that differs in one bit would show images that do not belong to the actions.
            assert np.array_equal(env.robot_obs(), row["robot_obs"]), 'a replay differs; is the reset mode "exact"?'
            frames.append({})
            for camera in ("static", "gripper") if self.wrist_camera else ("static",):
                rgb, depth = env.render_depth(camera)
                frames[-1][f"rgb_{camera}"] = rgb
                if self.depth:
                    frames[-1][f"depth_{camera}"] = depth
            env.step_physics(action)
        return _stack(frames)


@dataclass
class _Attempt:
    """The steps of one attempt at a recording, without images."""

    env: CalvinEnv
    oracle: TaskOracle
    perturbations: Perturbations
    executed: list[Action] = field(default_factory=list)
    """Commanded actions, or the perturbations that replaced them."""
    rows: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    _infos: list[dict[str, Any]] = field(default_factory=list)
    """What the oracle reads, before each step and after the last."""

    def step(self, action: Action) -> None:
        """Execute an action, or the perturbation that replaces it, and store what happened."""
        env = self.env
        row = {"robot_obs": env.robot_obs(), "scene_obs": env.scene_obs(), "commanded_actions": action}
        if not self._infos:
            self._infos.append(env.task_info())
        self.executed.append(self.perturbations.onto(action))
        env.step_physics(self.executed[-1])
        # The pose reached, with the commanded gripper: CALVIN's absolute action.
        row["actions"] = np.array([*env.robot_obs()[:6], action[6]])
        row["rel_actions"] = to_relative_action(row["actions"], row["robot_obs"])
        self.rows.append(row)
        self._infos.append(env.task_info())

    def solve(self, task: str, actions: Iterable[Action], begin: int) -> bool:
        """Execute actions until the oracle confirms the task since step `begin`; return False if it never does."""
        for action in actions:
            self.step(action)
            if self.holds(task, begin):
                return True
        return False

    def holds(self, task: str, begin: int) -> bool:
        """Return whether the oracle finds the task between step `begin` and now."""
        return bool(self.oracle.get_task_info_for_set(self._infos[begin], self._infos[-1], (task,)))


def _choose_instruction(task: str, rng: np.random.Generator) -> str:
    """Return a random training instruction of a task."""
    instructions = load_instructions("train")[task]
    return instructions[int(rng.integers(len(instructions)))]


def _stack(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _render_sampled(scene: str, states: dict[str, NDArray[Any]], seed: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return the images of recorded states in an appearance that depends on the seed and the scene alone.

    Args:
        scene: in which they were recorded.
        states: `robot_obs` and `scene_obs`, time axis first.
        seed: of the recording.
    """
    # The numbers below are the attempts' generators.
    appearance = sample_scene_appearance(np.random.default_rng([*seed, MAX_ATTEMPTS]), scene)
    robot_obs, scene_obs = states["robot_obs"], states["scene_obs"]
    size = INTRINSICS["static"].pixels
    return {"rgb_static": render_video(scene, appearance, robot_obs, scene_obs, image_size=size, oversampling=1)}


def next_task(env: CalvinEnv, pool: Sequence[str], done: Sequence[str], rng: np.random.Generator) -> str | None:
    """Return a random task that is feasible now; None if there is none in the pool.

    A held block is placed or stacked if the pool allows. Otherwise tasks not yet done go first.

    Args:
        env: the environment, as it is now.
        pool: the tasks to choose from.
        done: the tasks done so far, of which the last is not repeated.
        rng: generator of the choice.
    """
    world = observe_world(env)
    candidates = [task for task in pool if task != done[-1] and feasible(task, world)]
    if world.held() is not None:
        candidates = [task for task in candidates if task.startswith(("place", "stack"))] or candidates
    # New tasks first, so that play data covers many tasks.
    candidates = [task for task in candidates if task not in done] or candidates
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


def expand_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the task names, groups replaced by their tasks; order and repetitions stay, which act as weights.

    Raises:
        InputError: neither a task nor a group.
    """
    tasks: list[str] = []
    for name in names:
        if name not in TASK_GROUPS and name not in SKILLS:
            near = get_close_matches(name, [*TASK_GROUPS, *SKILLS], n=3)
            tasks_known = f"nearest: {', '.join(near)}" if near else f"tasks: {', '.join(sorted(SKILLS))}"
            raise InputError(f"unknown task {name!r}; groups: {', '.join(TASK_GROUPS)}; {tasks_known}")
        tasks.extend(TASK_GROUPS.get(name, (name,)))
    if not tasks:
        raise InputError(f"no task to demonstrate; name tasks or groups ({', '.join(TASK_GROUPS)})")
    return tuple(tasks)
