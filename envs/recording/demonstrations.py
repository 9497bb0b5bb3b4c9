"""Recordings: the expert at work from a start state, one task or several in a row, and the oracle's word on each.

`Recorder.record` is a pure function of its seed: it resets the world exactly, so neither what was recorded before nor
the process that does it shows in a single byte. It works in two passes. The rehearsal runs without images, which cost
many times what physics costs; if the oracle does not confirm every task within `max_steps`, and again at the end of its
window, it is thrown away and another start is drawn. The take that went well is then played again, to the bit, in front
of the cameras.

With `play` above 1 a recording is a stretch of play: a task, a moment of whatever the expert does next, another task
that is feasible where the world then stands, without a reset. Each task becomes a labeled window; the moments between
belong to none. The first task is the one asked for, the others are drawn from the pool, those not yet done first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin_writer import Label
from vw2_robot.errors import InputError

from ..actions import to_relative_action
from ..calvin import CONTROL_HZ, CalvinEnv
from ..experts.demonstrator import SKILLS, Demonstrator, feasible, observe_world
from ..experts.motion import Action, Perturbations
from ..experts.start_states import PAUSE_STEPS, TASK_GROUPS, Start, failed_attempt, go_to_start
from ..instructions import load_instructions
from ..oracle import TaskOracle

MAX_ATTEMPTS = 12


@dataclass(frozen=True)
class RecordedDemonstration:
    """What was seen and done at each of L control steps: action t was executed after image t was taken."""

    scene: str
    labels: tuple[Label, ...]
    """The tasks done, in order; windows do not overlap."""
    arrays: dict[str, NDArray[Any]]
    """By CALVIN's names, time axis first: `actions` the pose of the next step, `rel_actions` the way there, and
    `commanded_actions` what the expert wanted, which is what was executed but for perturbations. A world other than
    CALVIN's has `rgb_static` and `commanded_actions` alone.
    """
    failed: tuple[str, ...] = ()
    """Tasks at which earlier tries were given up."""
    hz: float = float(CONTROL_HZ)


@dataclass(frozen=True)
class Recorder:
    """How recordings are taken."""

    max_steps: int = 128
    tail_steps: int = 4
    """Steps kept after success, so that the last images show what success looks like."""
    play: int = 1
    """Tasks in a row in one recording."""
    max_window: int | None = None
    """Longest labeled window; what came before stays in the recording without a label. None: the whole task."""
    wrist_camera: bool = False
    depth: bool = False
    perturbations: float = 0.0
    """Chance of each step to be the first of a push, see `Perturbations`."""
    failed_attempts: float = 0.0
    """Share of tasks that begin where the expert has just tried in vain, see `go_to_start`."""

    def record(
        self, env: CalvinEnv, task: str, *, seed: Sequence[int], pool: Sequence[str] = ()
    ) -> RecordedDemonstration:
        """Record `task`, then `play` - 1 tasks of the pool. The bytes depend on the arguments alone.

        The reset mode of `env` must be "exact" for that.

        Raises:
            InputError: `MAX_ATTEMPTS` tries failed.
        """
        failed: list[str] = []
        while len(failed) < MAX_ATTEMPTS:
            rng = np.random.default_rng([*seed, len(failed)])
            oracle = TaskOracle()
            start = go_to_start(env, task, oracle, rng, failed_attempts=self.failed_attempts)
            take = _Take(env, oracle, Perturbations(self.perturbations, rng))
            stuck = self._rehearse(take, task, pool, rng)
            if stuck is None:
                arrays = {**self._video(env, start, take), **take.arrays()}
                return RecordedDemonstration(env.scene_name, tuple(take.labels), arrays, tuple(failed))
            failed.append(stuck)
        raise InputError(
            f"{task} was not demonstrated in {MAX_ATTEMPTS} tries of at most {self.max_steps} steps in scene"
            f" {env.scene_name} with assets {env.assets_dir}, given up at {', '.join(sorted(set(failed)))}; leave that"
            " out, or raise max_steps"
        )

    def _rehearse(self, take: _Take, task: str, pool: Sequence[str], rng: np.random.Generator) -> str | None:
        """Do all tasks without images; returns the one that was not solved, None if all were."""
        while True:
            expert = Demonstrator()
            expert.start(task, take.env, rng)
            begin = len(take.rows)
            if not take.do(task, expert, self.max_steps):
                return task
            for _ in range(self.tail_steps):
                take.step(expert.act(take.env))
            label = take.label(task, begin, self.max_window, rng)
            if label is None:
                return task
            take.labels.append(label)
            if len(take.labels) == self.play:
                return None
            if observe_world(take.env).held() is None:  # an expert that goes on would put the block down
                for _ in range(int(rng.integers(*PAUSE_STEPS))):
                    take.step(expert.act(take.env))
            following = next_task(take.env, pool, [label.task for label in take.labels], rng)
            if following is None:
                return task
            task = following
            if (
                self.failed_attempts > 0
                and rng.random() < self.failed_attempts
                and observe_world(take.env).held() is None
            ):
                for action in failed_attempt(take.env, task, rng):
                    take.step(action)
                if not feasible(task, observe_world(take.env)):
                    return task

    def _video(self, env: CalvinEnv, start: Start, take: _Take) -> dict[str, NDArray[Any]]:
        """Play a take again and look at every step of it."""
        start.restore(env)
        frames: list[dict[str, NDArray[Any]]] = []
        for row, action in zip(take.rows, take.executed, strict=True):
            assert np.array_equal(env.robot_obs(), row["robot_obs"]), 'a replay drifted; is the reset mode "exact"?'
            frames.append({})
            for camera in ("static", "gripper") if self.wrist_camera else ("static",):
                rgb, depth = env.render_depth(camera)
                frames[-1][f"rgb_{camera}"] = rgb
                if self.depth:
                    frames[-1][f"depth_{camera}"] = depth
            env.step_physics(action)
        return _stack(frames)


@dataclass
class _Take:
    """A recording in the making, without images."""

    env: CalvinEnv
    oracle: TaskOracle
    perturbations: Perturbations
    executed: list[Action] = field(default_factory=list)
    """Commanded actions, or the pushes that came instead."""
    rows: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    _infos: list[dict[str, Any]] = field(default_factory=list)
    """What the oracle may ask about the world before each step, and after the last."""

    def step(self, action: Action) -> None:
        """Execute an action, if nothing pushes the arm, and note what happened."""
        env = self.env
        row = {"robot_obs": env.robot_obs(), "scene_obs": env.scene_obs(), "commanded_actions": action}
        if not self._infos:
            self._infos.append(env.task_info())
        self.executed.append(self.perturbations.onto(action))
        env.step_physics(self.executed[-1])
        row["actions"] = np.array([*env.robot_obs()[:6], action[6]])
        row["rel_actions"] = to_relative_action(row["actions"], row["robot_obs"])
        self.rows.append(row)
        self._infos.append(env.task_info())

    def do(self, task: str, expert: Demonstrator, max_steps: int) -> bool:
        """Let the expert work until the oracle confirms the task; False if that takes more than `max_steps`."""
        begin = len(self.rows)
        for _ in range(max_steps):
            self.step(expert.act(self.env))
            if self._holds(task, begin, len(self.rows)):
                return True
        return False

    def label(self, task: str, begin: int, max_window: int | None, rng: np.random.Generator) -> Label | None:
        """The window of a task that began at step `begin` and ends now; None if the oracle does not confirm it.

        It may not: the tail undid the task, or the change began before a window cut to `max_window`.
        """
        start = begin if max_window is None else max(begin, len(self.rows) - max_window)
        if not self._holds(task, start, len(self.rows)):
            return None
        sentences = load_instructions("train")[task]
        return Label(task, sentences[int(rng.integers(len(sentences)))], start, len(self.rows) - 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but images, time axis first."""
        return _stack(self.rows)

    def _holds(self, task: str, begin: int, end: int) -> bool:
        return bool(self.oracle.get_task_info_for_set(self._infos[begin], self._infos[end], (task,)))


def _stack(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def next_task(env: CalvinEnv, pool: Sequence[str], done: Sequence[str], rng: np.random.Generator) -> str | None:
    """Draw a task that is feasible now; None if there is none in the pool.

    A block in the hand is placed or stacked if the pool allows. Otherwise tasks not yet done go first.
    """
    world = observe_world(env)
    choices = [task for task in pool if task != done[-1] and feasible(task, world)]
    if world.held() is not None:
        choices = [task for task in choices if task.startswith(("place", "stack"))] or choices
    choices = [task for task in choices if task not in done] or choices
    return choices[int(rng.integers(len(choices)))] if choices else None


def expand_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Replace names of groups by their tasks; keeps order and repetitions, which are weights.

    Raises:
        InputError: neither a task nor a group.
    """
    tasks: list[str] = []
    for name in names:
        if name not in TASK_GROUPS and name not in SKILLS:
            raise InputError(
                f"unknown task {name!r}; groups: {', '.join(TASK_GROUPS)}; tasks: {', '.join(sorted(SKILLS))}"
            )
        tasks.extend(TASK_GROUPS.get(name, (name,)))
    if not tasks:
        raise InputError(f"no task to demonstrate; name tasks or groups ({', '.join(TASK_GROUPS)})")
    return tuple(tasks)
