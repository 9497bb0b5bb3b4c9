"""CALVIN's 34 tasks as an environment of LeRobot: `lerobot-eval --env.type=vw2_calvin`.

Task i of the suite `calvin` is the i-th of `vw2_robot.envs.sequences.TASKS`. An episode that is reset with seed n
begins where rollout n (modulo 1000) of a task of `vw2-rollout` does, so with `--seed=0` both have the same starts. The
simulator is built at the first reset: LeRobot makes the environments of all tasks before it uses one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError
from vw2_robot.hub.lerobot_files import CAMERA_SIZE

from .configuration_vw2 import CAMERA

if TYPE_CHECKING:
    from vw2_robot.envs.benchmark import CalvinBenchmark

SUITE = "calvin"
IMAGE_SHAPE = (*CAMERA_SIZE, 3)


@EnvConfig.register_subclass("vw2_calvin")
@dataclass
class Vw2CalvinConfig(EnvConfig):
    """Options `--env.*`."""

    task: str | None = None
    """names of tasks, with commas between them; null: all 34"""
    fps: int = 30
    """of the control; always 30"""
    episode_length: int = 360
    """most steps of an episode"""
    scene: str = "D"
    """A, B, C or D"""
    assets: str = "builtin"
    """builtin, or a folder with the layout of calvin_env/data"""
    renderer: str = "layered"
    """layered, tiny or egl"""
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,)),
            "pixels/static": PolicyFeature(type=FeatureType.VISUAL, shape=IMAGE_SHAPE),
        }
    )
    """of LeRobot; like the next not to be changed"""
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "pixels/static": CAMERA})
    """environment key -> policy key"""

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of every environment."""
        names = ("scene", "assets", "renderer")
        return {"max_steps": self.episode_length, **{name: getattr(self, name) for name in names}}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Return {suite: {task id: environments}}.

        Raises:
            InputError: an unknown task.
        """
        # Imported here: a policy needs no simulator.
        from vw2_robot.envs.sequences import TASKS

        known = list(TASKS)
        wanted = known if self.task is None else [name.strip() for name in self.task.split(",")]
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(f"--env.task: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        suite = {}
        for name in wanted:
            makers = [partial(CalvinTask, name, **self.gym_kwargs)] * n_envs
            if use_async_envs and n_envs > 1:
                first = makers[0]()
                suite[known.index(name)] = _LazyAsyncVectorEnv(
                    makers, first.observation_space, first.action_space, first.metadata
                )
            else:
                frozen = [freeze_after_episode_end(make) for make in makers]
                suite[known.index(name)] = SyncVectorEnv(frozen, autoreset_mode=AutoresetMode.NEXT_STEP)
        return {SUITE: suite}


class CalvinTask(gymnasium.Env[dict[str, Any], NDArray[np.floating[Any]]]):
    """One task; observations are {"pixels": {"static": uint8 [200, 200, 3]}}.

    Args:
        task: its name.
        max_steps: of an episode.
        simulator: arguments of `CalvinBenchmark`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own convention
    render_mode = "rgb_array"

    def __init__(self, task: str, *, max_steps: int, **simulator: Any) -> None:
        self.task = task
        # LeRobot reads the limit under this name.
        self._max_episode_steps = max_steps
        self._simulator = simulator
        self._benchmark: CalvinBenchmark | None = None
        self._rollout = -1
        self._count = 0
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict({"static": spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)})}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    @property
    def benchmark(self) -> CalvinBenchmark:
        """The simulator; built when it is first needed."""
        if self._benchmark is None:
            from vw2_robot.envs.benchmark import CalvinBenchmark

            self._benchmark = CalvinBenchmark(max_steps=self._max_episode_steps, **self._simulator)
        return self._benchmark

    @property
    def task_description(self) -> str:
        """The task's instruction."""
        return self.benchmark.instruction(self.task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: number of the rollout, see the top of this file; None: the next one.
            options: LeRobot's, `lerobot_*`, are not used.

        Raises:
            InputError: other options.
        """
        from vw2_robot.envs.single_tasks import MOST_PER_TASK, single_task

        super().reset(seed=seed)
        if unknown := [name for name in options or {} if not name.startswith("lerobot_")]:
            raise InputError(f"reset: unknown option(s) {', '.join(unknown)}; this environment has none")
        self._rollout = (self._rollout + 1 if seed is None else seed) % MOST_PER_TASK
        self._count = 0
        self.benchmark.reset(single_task(self.task, self._rollout))
        self.benchmark.begin(self.task)
        return self._observe(), {"is_success": False}

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute an action; success gives reward 1 and ends the episode."""
        success = self.benchmark.step(action)
        self._count += 1
        truncated = not success and self._count >= self._max_episode_steps
        return self._observe(), float(success), success, truncated, {"is_success": success}

    def render(self) -> NDArray[np.uint8]:
        """Return the static camera's image."""
        return self.benchmark.observe()["images"]["static"]

    def close(self) -> None:
        """Free the simulator."""
        if self._benchmark is not None:
            self._benchmark.close()
            self._benchmark = None

    def _observe(self) -> dict[str, Any]:
        return {"pixels": {"static": self.render()}}
