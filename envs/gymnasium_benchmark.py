"""Any Gymnasium environment with a camera and a vector of actions as a benchmark of `vw2-rollout`.

    vw2-rollout env=gymnasium env.id=my_package:My-v0 'env.tasks={reach: reach the red block}' policy=DIR run_dir=DIR

An episode is one task, from a start that depends on the number of the episode and `sequences_seed` alone, as far as the
environment's `reset(seed=)` does. docs/integrations/gymnasium.md.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

import vw2_robot
from vw2_robot.contracts import CALVIN_ACTIONS, ActionSpace, EvalSequence, Observation
from vw2_robot.errors import InputError

from .option_validation import check_choice

SEED = "seed"  # key in an initial state: for the environment's reset


class GymnasiumBenchmark:
    """A `vw2_robot.contracts.Benchmark` around an environment.

    Args:
        id: for `gymnasium.make`, "module:Name-v0" where a module registers it.
        tasks: name of each task -> instruction.
        task_argument: argument of the environment that takes the task's name; None: it has none.
        task_option: key of the options of `reset` that takes it; None: there is none.
        arguments: others for `gymnasium.make`.
        camera: the policy's name of the image.
        image_key: where the image is in an observation, "pixels" or "pixels.top"; None: what `render` returns, which
            is called only when the policy needs an image.
        success_key: in the environment's info; None: an episode that the environment ends is a success.
        action_names: of the numbers of an action, as the policy's training data name them; None: CALVIN's seven.
        action_units: what the numbers mean, for people.
        action_scale: a number for each of them that a policy's action is multiplied with; None: 1.
        max_steps: per episode; None: the environment's limit.
        control_hz: steps per second; None: the environment's render_fps.

    Raises:
        InputError: no such environment, other actions, or no image.
    """

    def __init__(
        self,
        *,
        id: str,
        tasks: Mapping[str, str],
        task_argument: str | None = None,
        task_option: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        camera: str = "static",
        image_key: str | None = None,
        success_key: str | None = "is_success",
        action_names: Sequence[str] | None = None,
        action_units: str = "",
        action_scale: Sequence[float] | None = None,
        max_steps: int | None = None,
        control_hz: float | None = None,
    ) -> None:
        if not id or not tasks:
            raise InputError("give env.id=MODULE:NAME-v0 and env.tasks={TASK: INSTRUCTION}")
        self._id = id
        self._tasks = dict(tasks)
        self._task_argument = task_argument
        self._task_option = task_option
        self._arguments = {**({} if image_key else {"render_mode": "rgb_array"}), **(arguments or {})}
        self.camera = camera
        self._image_key = image_key
        self._success_key = success_key
        self.action_space = CALVIN_ACTIONS if action_names is None else ActionSpace(tuple(action_names), action_units)
        size = self.action_space.size
        self._scale = np.ones(size) if action_scale is None else np.array(action_scale, dtype=np.float64)
        if self._scale.shape != (size,):
            raise InputError(f"action_scale needs {size} numbers, found {action_scale}")
        self._task = next(iter(self._tasks))
        self._env = self._make(self._task)
        self._check_actions()
        limit = max_steps or (self._env.spec.max_episode_steps if self._env.spec else None)
        hz = control_hz or self._env.metadata.get("render_fps")
        if not limit or not hz:
            raise InputError(
                f"{id} has no {'limit of steps: give env.max_steps' if not limit else 'rate: give env.control_hz'}"
            )
        self.max_steps = int(limit)
        self.control_hz = float(hz)
        self.metadata = {
            "scene": id,
            "arguments": self._arguments,
            "camera": camera,
            "image_key": image_key,
            "success_key": success_key,
            "action_scale": self._scale.tolist(),
            "versions": {
                "vw2_robot": vw2_robot.__version__,
                **{name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")},
            },
        }
        self._observation: Any = None
        self._is_over = True

    def sequences(self, count: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return `count` episodes, the tasks in turn; another seed has other starts."""
        names = list(self._tasks)
        return [
            EvalSequence(
                number,
                {SEED: int(np.random.SeedSequence([seed, number]).generate_state(1)[0])},
                (names[number % len(names)],),
            )
            for number in range(count)
        ]

    def single_tasks(self, per_task: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return `per_task` episodes of each task; another seed has other starts."""
        return self.sequences(per_task * len(self._tasks), seed=seed)

    def instruction(self, task: str) -> str:
        """Return the instruction of a task."""
        return self._tasks[check_choice("task", task, self._tasks)]

    def reset(self, sequence: EvalSequence) -> None:
        """Begin an episode of the sequence's task."""
        (task,) = sequence.subtasks
        if self._task_argument is not None and task != self._task:
            self._env.close()
            self._env = self._make(task)
        self._task = task
        options = None if self._task_option is None else {self._task_option: task}
        self._observation, _ = self._env.reset(seed=sequence.initial_state[SEED], options=options)
        self._is_over = False

    def begin(self, task: str) -> None:
        """Begin the task: the environment has it since `reset`."""
        if task != self._task:
            raise InputError(f"the episode is one of {self._task}, not of {task}")

    def observe(self) -> Observation:
        """Return the present image and the instruction.

        Raises:
            InputError: the environment gives no such image.
        """
        return {"images": {self.camera: self._image()}, "prompt": self._tasks[self._task]}

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Execute one action and return whether the task is solved; after the episode's end nothing happens.

        Raises:
            InputError: the environment's info does not say whether it is.
        """
        if self._is_over:
            return False
        scaled = (action * self._scale).astype(self._env.action_space.dtype)
        self._observation, _, terminated, truncated, info = self._env.step(scaled)
        self._is_over = bool(terminated or truncated)
        if self._success_key is None:
            return bool(terminated)
        if self._success_key not in info:
            raise InputError(
                f"{self._id} has no {self._success_key!r} in its info, only {', '.join(map(str, info)) or 'nothing'}; "
                "give env.success_key=NAME, or null where its episodes end by success alone"
            )
        return bool(info[self._success_key])

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _make(self, task: str) -> gymnasium.Env[Any, Any]:
        named = {} if self._task_argument is None else {self._task_argument: task}
        try:
            return gymnasium.make(self._id, **(self._arguments | named))
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise InputError(f"env.id={self._id} cannot be made: {error}") from error

    def _check_actions(self) -> None:
        space = self._env.action_space
        if not isinstance(space, spaces.Box) or space.shape != (self.action_space.size,):
            self._env.close()
            raise InputError(
                f"{self._id} takes actions of {space}, expected a Box of {self.action_space.size} numbers "
                f"({', '.join(self.action_space.names)}); env.action_names names others"
            )

    def _image(self) -> NDArray[np.uint8]:
        found: Any
        if self._image_key is None:
            found = self._env.render()
        else:
            found = self._observation
            for name in self._image_key.split("."):
                if not isinstance(found, Mapping) or name not in found:
                    there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
                    raise InputError(f"{self._id}: no {self._image_key!r} in the observation; found {there}")
                found = found[name]
        image = np.asarray(found)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(
                f"{self._id}: {self._image_key or 'render()'} must be uint8 [height, width, 3], found {image.dtype} "
                f"{list(image.shape)}"
            )
        return np.ascontiguousarray(image)
