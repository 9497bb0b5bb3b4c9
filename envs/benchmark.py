"""CALVIN's long-horizon protocol behind `vw2_robot.contracts.Benchmark`: world, chains, sentences and oracle in one.

One object is one worker's world. A chain: `reset(sequence)`; for each of its five subtasks `begin(task)`, then up to
`max_steps` times `step(action)`, with `observe()` whenever the policy looks; `step` says True once the oracle finds the
subtask done since its `begin`. The world is not reset between subtasks. Only the scene D chains are the published
benchmark; with "exact" resets a chain's outcome does not depend on the chains before it.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import vw2_robot
from vw2_robot.contracts import EvalSequence, Observation
from vw2_robot.errors import InputError

from . import CALVIN_ID
from .calvin import CONTROL_HZ, CalvinEnv
from .demonstrator import DemonstratorPolicy
from .instructions import load_instructions
from .oracle import TaskOracle
from .sequences import make_sequences, start_state

MAX_STEPS = 360


class CalvinBenchmark:
    """A CALVIN table with its 1000 chains. Policies see the static camera and the sentence, nothing else."""

    def __init__(
        self,
        *,
        scene: str = "D",
        assets: str = "builtin",
        renderer: str = "tiny",
        reset_mode: str = "exact",
        max_steps: int = MAX_STEPS,
    ) -> None:
        if max_steps < 1:
            raise InputError(f"max_steps must be at least 1, found {max_steps}")
        made = gymnasium.make(
            CALVIN_ID,
            scene=scene,
            assets=assets,
            renderer=renderer,
            cameras=(),
            reset_mode=reset_mode,
            disable_env_checker=True,
        )
        assert isinstance(made.unwrapped, CalvinEnv)
        self.env = made.unwrapped
        self.max_steps = max_steps
        self.control_hz = float(CONTROL_HZ)
        self.metadata: dict[str, Any] = {
            "scene": scene,
            "assets": str(assets),
            "renderer": renderer,
            "reset_mode": reset_mode,
            "versions": _versions(),
        }
        self._oracle = TaskOracle()
        self._instructions = load_instructions("validation")
        self._task: str | None = None
        self._start_info: dict[str, Any] = {}

    def sequences(self, count: int) -> list[EvalSequence]:
        """The first `count` of the 1000 chains."""
        return make_sequences(count)

    def instruction(self, task: str) -> str:
        """The sentence that asks for `task`."""
        if task not in self._instructions:
            raise InputError(f"unknown task {task!r}; known: {', '.join(self._instructions)}")
        return self._instructions[task][0]

    def reset(self, sequence: EvalSequence) -> None:
        """Put everything where the chain starts."""
        robot_obs, scene_obs = start_state(sequence.initial_state, self.env.scene_name)
        self.env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        self._task = None

    def begin(self, task: str) -> None:
        """Ask for `task`: from here on it counts as solved once it has happened since now."""
        self.instruction(task)  # refuses an unknown task
        self._task = task
        self._start_info = self.env.task_info()

    def observe(self) -> Observation:
        """What a policy may see now. Renders one picture."""
        return {"images": {"static": self.env.render_camera("static")}, "prompt": self.instruction(self._asked())}

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """One control step; True once the subtask begun last is solved."""
        task = self._asked()
        self.env.step_physics(action)
        return bool(self._oracle.get_task_info_for_set(self._start_info, self.env.task_info(), (task,)))

    def expert(self) -> DemonstratorPolicy:
        """The scripted expert for this world, as a policy: it reads the simulator's state, not the picture."""
        return DemonstratorPolicy(self.env, {self.instruction(task): task for task in self._instructions})

    def close(self) -> None:
        """Free the world."""
        self.env.close()

    def _asked(self) -> str:
        if self._task is None:
            raise RuntimeError("call begin(task) after reset and before observe() or step()")
        return self._task


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("pybullet", "gymnasium", "numpy")}
    return {"vw2_robot": vw2_robot.__version__, **packages}
