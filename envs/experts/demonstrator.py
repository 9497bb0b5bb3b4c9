"""The scripted expert: one skill per task, started again from the present state until its caller stops.

The expert reads the privileged state of the simulator. It makes demonstrations (`record.py`) and an upper bound for
rollouts, and is no part of any policy. Only the task oracle decides whether a task is solved: the expert never asks it
and never stops by itself.

`feasible` computes from the state whether a task can be done at all, with margins on the thresholds of the oracle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.contracts import ACTION_NAMES, Observation, PolicyOutput
from vw2_robot.errors import InputError

from ..calvin import CalvinEnv
from . import block_skills, block_states, skills
from .motion import BLOCK_COLORS, Action, EndEffector, Motion, Style, WorldState, world_from_info
from .ways import SPEEDS, Way

DOOR_MARGIN_M = 0.01
"""How much farther than the oracle's threshold a door must be able to move before a task counts as feasible."""


def observe_world(env: CalvinEnv) -> WorldState:
    """Return the privileged state of an environment."""
    target, target_euler = env.robot.target_pose()
    return world_from_info(env.task_info(), target=target, target_euler=target_euler, scene=env.scene_name)


class Demonstrator:
    """One expert for all tasks. Equal generators and equal states give equal actions."""

    def __init__(self) -> None:
        self._end_effector: EndEffector | None = None
        self._skill: Callable[[EndEffector], Motion] | None = None
        self._motion: Motion | None = None
        self._error = np.zeros(3)

    def start(
        self,
        task: str,
        env: CalvinEnv,
        rng: np.random.Generator,
        *,
        error: NDArray[np.float64] | None = None,
        way: Way | None = None,
    ) -> None:
        """Begin a task in the present state.

        Args:
            task: name of the task, a key of `SKILLS`.
            env: the environment, as it is now.
            rng: generator of the style and of all random choices of the skill.
            error: offset [3] in meters that is added to all positions that the expert reads, to provoke a failed
                attempt; None: no offset.
            way: how to do the task, of `choose_way`; None: the expert's usual way.

        Raises:
            KeyError: there is no skill for this task; the message lists those that exist.
        """
        if task not in SKILLS:
            raise KeyError(f"no demonstrator for task {task!r}; there is one for {', '.join(sorted(SKILLS))}")
        self._error = np.zeros(3) if error is None else error
        style, route = Style.sample(rng), "only"
        if way is not None:
            style, route = replace(style, speed=float(rng.uniform(*SPEEDS[way.speed]))), way.route
        self._end_effector = EndEffector(self._observe(env), rng, style, route)
        self._skill = SKILLS[task]
        self._motion = None

    def act(self, env: CalvinEnv) -> Action:
        """Return the next relative action [7], to be executed before the next call."""
        assert self._end_effector is not None, "act before start"
        assert self._skill is not None, "act before start"
        # The motion reads this state when it computes its next action.
        self._end_effector.world = self._observe(env)
        if self._motion is not None:
            action = next(self._motion, None)
            if action is not None:
                return action
        self._motion = self._skill(self._end_effector)  # first call, or the plan has ended: plan from the present state
        return next(self._motion, self._end_effector.noop())

    def _observe(self, env: CalvinEnv) -> WorldState:
        """Return the state that the expert acts on, with its position error."""
        world = observe_world(env)
        return world.with_position_error(self._error) if self._error.any() else world


class DemonstratorPolicy:
    """The expert as a `vw2_robot.contracts.Policy`: an upper bound for rollouts.

    It is bound to one environment and acts on the privileged state of that environment; of an observation it uses the
    prompt alone. It therefore takes no batches.
    """

    def __init__(self, env: CalvinEnv, tasks: Mapping[str, str]) -> None:
        """Bind the policy to an environment; `tasks` maps instructions to task names."""
        self.metadata: dict[str, Any] = {
            "name": "demonstrator",
            "version": __version__,
            "action_space": list(ACTION_NAMES),
            "chunk_size": 1,
            "n_action_steps": 1,
            "cameras": [],
            "policy_hash": None,
            "label_fraction": None,
        }
        self._env = env
        self._tasks = dict(tasks)
        self._expert = Demonstrator()
        self._rng = np.random.default_rng(0)
        self._prompt: str | None = None
        self._is_started = False

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Drop the plan; the next `infer` makes a new one from the state at that time.

        Args:
            prompt: the instruction; None: that of the first observation.
            seed: of the expert's random choices; None means 0.
        """
        self._prompt = prompt
        # A generator of its own for each episode, so that episodes do not depend on one another.
        self._rng = np.random.default_rng(seed or 0)
        self._is_started = False

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return one action, float32 [1, 7], for the present state of the environment."""
        if not self._is_started:
            prompt = self._prompt if self._prompt is not None else obs.get("prompt")
            if prompt not in self._tasks:
                raise InputError(f"the demonstrator knows the instructions of the evaluation only, received {prompt!r}")
            self._expert.start(self._tasks[prompt], self._env, self._rng)
            self._is_started = True
        return {"actions": self._expert.act(self._env).astype(np.float32)[None]}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return the result of `infer` for the one observation; a batch is refused, since there is one environment."""
        if len(obs) != 1:
            raise InputError(f"the demonstrator drives one world, received a batch of {len(obs)} observations")
        return [self.infer(obs[0])]


def feasible(task: str, world: WorldState) -> bool:
    """Return whether `task` can be done from this state at all."""
    parts = task.split("_")
    # Doors: as far as they must move for the task oracle, and a margin.
    if task in _DOOR_ROOM:
        return _DOOR_ROOM[task](world) > DOOR_MARGIN_M
    # Lights, for example turn_on_led: only in the other state.
    if parts[0] == "turn":
        return world.lights[parts[2]] is (parts[1] == "off")
    # Blocks: the gripper must be free, and the block where the skill can handle it.
    if parts[0] == "push" and parts[1] in BLOCK_COLORS:
        return world.held() is None and block_states.stands_free(world, parts[1])
    if parts[0] == "rotate":
        return world.held() is None and block_states.stands_in_reach(world, parts[1])
    if parts[0] == "lift":
        return world.held() is None and block_states.can_lift(world, parts[1], parts[3])
    # What begins with a held block.
    if task in ("place_in_slider", "place_in_drawer", "stack_block"):
        return world.held() is not None and block_states.has_room(world, task)
    if task == "unstack_block":
        return world.held() is None and block_states.stacked(world) is not None
    return task == "push_into_drawer" and world.held() is None and block_states.can_push_into_drawer(world)


# How much farther each door can move than the oracle demands, meters.
_DOOR_ROOM: dict[str, Callable[[WorldState], float]] = {
    "move_slider_left": lambda world: world.fixtures.slide_range - world.slide - 0.15,
    "move_slider_right": lambda world: world.slide - 0.15,
    "open_drawer": lambda world: 0.20 - world.drawer - 0.12,
    "close_drawer": lambda world: world.drawer - 0.12 - DOOR_MARGIN_M / 2,
}


def _skills() -> dict[str, Callable[[EndEffector], Motion]]:
    """Return the table of skills: those of blocks are bound to a color, and to a side."""
    table: dict[str, Callable[[EndEffector], Motion]] = {
        "open_drawer": skills.open_drawer,
        "close_drawer": skills.close_drawer,
        "move_slider_left": functools.partial(skills.move_slider, left=True),
        "move_slider_right": functools.partial(skills.move_slider, left=False),
        "turn_on_lightbulb": functools.partial(skills.move_lever, up=True),
        "turn_off_lightbulb": functools.partial(skills.move_lever, up=False),
        "turn_on_led": skills.press_button,
        "turn_off_led": skills.press_button,
        "place_in_slider": block_skills.place_in_slider,
        "place_in_drawer": block_skills.place_in_drawer,
        "stack_block": block_skills.stack_block,
        "unstack_block": block_skills.unstack_block,
        "push_into_drawer": block_skills.push_into_drawer,
    }
    # Names of tasks are formed as in CALVIN's task file.
    for color in BLOCK_COLORS:
        for side in ("left", "right"):
            is_right = side == "right"
            table[f"push_{color}_block_{side}"] = functools.partial(
                block_skills.push_block, color=color, right=is_right
            )
            table[f"rotate_{color}_block_{side}"] = functools.partial(
                block_skills.rotate_block, color=color, right=is_right
            )
        for place in ("table", "slider", "drawer"):
            table[f"lift_{color}_block_{place}"] = functools.partial(block_skills.lift_block, color=color)
    return table


SKILLS = _skills()
"""Task name -> skill, for all 34 tasks of CALVIN."""
