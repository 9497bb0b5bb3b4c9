"""Meta-World's tasks as a `vw2_robot.contracts.Benchmark`, and its scripted experts as a policy.

    vw2-rollout env=metaworld policy=DIR num_sequences=50 run_dir=DIR

Each episode is one task, judged by Meta-World itself, from a start that depends on seed and number alone.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vw2_robot
from vw2_robot.contracts import Observation, PolicyOutput
from vw2_robot.errors import InputError, require

from ..gymnasium_benchmark import GymnasiumBenchmark
from . import META_WORLD_ACTIONS, META_WORLD_ID
from .environment import MetaWorldEnv

LONGEST = 500
"""steps that Meta-World allows"""
PACKAGES = ("metaworld", "mujoco")


class MetaWorldBenchmark(GymnasiumBenchmark):
    """Some tasks of Meta-World, in turn.

    Args:
        tasks: name of each task -> instruction.
        camera: which of Meta-World's; also the policy's name of it.
        image_size: height and width of the image in pixels.
        max_steps: per episode, at most 500.

    Raises:
        InputError: an unknown task or camera, too many steps, or nothing to render with.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, str],
        camera: str = "corner2",
        image_size: int = 128,
        max_steps: int = 200,
    ) -> None:
        if not 1 <= max_steps <= LONGEST:
            raise InputError(f"max_steps={max_steps}, expected 1 to {LONGEST}")
        super().__init__(
            id=f"vw2_robot.envs.meta_world:{META_WORLD_ID}",
            tasks=tasks,
            task_option="task",
            arguments={"camera": camera, "image_size": image_size, "disable_env_checker": True},
            camera=camera,
            max_steps=max_steps,
            action_names=META_WORLD_ACTIONS.names,
            action_units=META_WORLD_ACTIONS.units,
        )
        assert isinstance(self._env.unwrapped, MetaWorldEnv)
        self.world = self._env.unwrapped
        for task in tasks:
            self.world.check_task(task)
        self.metadata["scene"] = "Meta-World"
        self.metadata["versions"] |= {name: importlib.metadata.version(name) for name in PACKAGES}

    @property
    def state(self) -> NDArray[np.float64]:
        """Return Meta-World's present state [39], for the experts."""
        state: NDArray[np.float64] = self._observation
        return state

    def expert(self) -> ExpertPolicy:
        """Return the scripted experts as a policy; they read the state, not the image."""
        return ExpertPolicy(self)


class ExpertPolicy:
    """The expert of the present task as a `vw2_robot.contracts.Policy`, an upper bound for rollouts.

    It is bound to one benchmark and reads its state; an observation is not used, so it takes no batches.
    """

    def __init__(self, benchmark: MetaWorldBenchmark) -> None:
        self.metadata: dict[str, Any] = {
            "name": "demonstrator",
            "version": vw2_robot.__version__,
            "action_space": list(META_WORLD_ACTIONS.names),
            "chunk_size": 1,
            "n_action_steps": 1,
            "cameras": [],
            "policy_hash": None,
            "label_fraction": None,
        }
        self._benchmark = benchmark
        self._experts: Mapping[str, Any] = require("metaworld.policies", extra="metaworld").ENV_POLICY_MAP
        self._expert: Any = None

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode of the benchmark's present task."""
        self._expert = self._experts[self._benchmark.world.task]()

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return one action, float32 [1, 4]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its gains ask for more than 1 far from the goal; it is clipped below
            action = self._expert.get_action(self._benchmark.state)
        return {"actions": np.clip(action, -1, 1).astype(np.float32)[None]}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return an action for one observation.

        Raises:
            InputError: there are several; the expert sees one environment only.
        """
        if len(obs) != 1:
            raise InputError(f"the expert acts in the one environment that it is bound to, found {len(obs)} images")
        return [self.infer(obs[0])]
