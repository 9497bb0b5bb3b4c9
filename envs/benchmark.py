"""CALVIN's protocols behind `vw2_robot.contracts.Benchmark`: world, chains, sentences and oracle in one.

One object is one worker's world. A chain: `reset(sequence)`; for each of its five subtasks `begin(task)`, then up to
`max_steps` times `step(action)`, with `observe()` whenever the policy looks; `step` says True once the oracle finds the
subtask done since its `begin`. The world is not reset between subtasks. Only the scene D chains are the published
benchmark; with "exact" resets a chain's outcome does not depend on the chains before it.

`CalvinProtocol` is all of it but the simulator: `CalvinBenchmark` plays it in ours, `CalvinReference`
(calvin_reference.py) in the original. Single tasks are chains of one (single_tasks.py says where they begin).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

import vw2_robot
from vw2_robot.contracts import EvalSequence, Observation
from vw2_robot.errors import InputError

from . import CALVIN_ID
from .calvin import CONTROL_HZ, CalvinEnv
from .experts.demonstrator import DemonstratorPolicy
from .instructions import choose_instruction, read_instructions
from .oracle import TaskOracle
from .physics import pybullet_version
from .sequences import make_sequences, start_state
from .single_tasks import go_to_single_start, needs_prelude, single_tasks

MAX_STEPS = 360


class Simulator(Protocol):
    """What the protocol asks of a simulator."""

    scene_name: str

    def reset_physics(self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> None:
        """Go to a state."""

    def step_physics(self, action: Any) -> None:
        """One control step."""

    def task_info(self) -> dict[str, Any]:
        """What the oracle compares."""

    def render_camera(self, name: str) -> NDArray[np.uint8]:
        """One image."""

    def close(self) -> None:
        """Free it."""


class CalvinProtocol:
    """The protocols in any world of this kind. Policies see the static camera and the sentence, nothing else.

    `oracle` has `get_task_info_for_set(start_info, end_info, tasks)`: `TaskOracle`, or the original's.
    """

    def __init__(
        self, world: Simulator, oracle: Any, *, max_steps: int, instructions: str, metadata: dict[str, Any]
    ) -> None:
        self.max_steps = max_steps
        self.control_hz = float(CONTROL_HZ)
        self.metadata = metadata | {"instructions": str(instructions)}
        self._world, self._oracle = world, oracle
        self._instructions = read_instructions(instructions)
        self._chain: int | None = None
        self._task: str | None = None
        self._start_info: dict[str, Any] = {}

    def sequences(self, count: int) -> list[EvalSequence]:
        """The first `count` of the 1000 chains."""
        return make_sequences(count)

    def single_tasks(self, per_task: int) -> list[EvalSequence]:
        """Each of the 34 tasks by itself, `per_task` times."""
        return single_tasks(per_task)

    def instruction(self, task: str) -> str:
        """The sentence that asks for `task` in the chain under way; the first one before any chain."""
        if task not in self._instructions:
            raise InputError(f"unknown task {task!r}; known: {', '.join(self._instructions)}")
        return choose_instruction(self._instructions[task], task, self._chain)

    def reset(self, sequence: EvalSequence) -> None:
        """Put everything where the chain starts."""
        if needs_prelude(sequence):
            go_to_single_start(cast(CalvinEnv, self._world), sequence, self._oracle)
        else:
            robot_obs, scene_obs = start_state(sequence.initial_state, self._world.scene_name)
            self._world.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        self._chain, self._task = sequence.number, None

    def begin(self, task: str) -> None:
        """Ask for `task`: from here on it counts as solved once it has happened since now."""
        self.instruction(task)  # refuses an unknown task
        self._task = task
        self._start_info = self._world.task_info()

    def observe(self) -> Observation:
        """What a policy may see now: the static camera, and the sentence."""
        return {"images": {"static": self._world.render_camera("static")}, "prompt": self.instruction(self._asked())}

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """One control step; True once the subtask begun last is solved."""
        task = self._asked()
        self._world.step_physics(action)
        return bool(self._oracle.get_task_info_for_set(self._start_info, self._world.task_info(), {task}))

    def expert(self) -> DemonstratorPolicy:
        """The scripted expert for this world, as a policy: it reads the simulator's state, not the image."""
        world = cast(CalvinEnv, self._world)  # it asks for task_info, target_pose and scene_name only
        tasks = {text: task for task, texts in self._instructions.items() for text in texts}
        return DemonstratorPolicy(world, tasks)

    def close(self) -> None:
        """Free the world."""
        self._world.close()

    def _asked(self) -> str:
        if self._task is None:
            raise RuntimeError("call begin(task) after reset and before observe() or step()")
        return self._task


class CalvinBenchmark(CalvinProtocol):
    """A CALVIN table with its 1000 chains, in our simulator."""

    def __init__(
        self,
        *,
        scene: str = "D",
        assets: str = "builtin",
        renderer: str = "layered",
        reset_mode: str = "exact",
        max_steps: int = MAX_STEPS,
        instructions: str = "validation",
    ) -> None:
        check_max_steps(max_steps)
        read_instructions(instructions)  # refuses a wrong name before a world is built
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
        metadata = {
            "scene": scene,
            "assets": str(assets),
            "renderer": renderer,
            "reset_mode": reset_mode,
            "versions": _versions(),
        }
        super().__init__(self.env, TaskOracle(), max_steps=max_steps, instructions=instructions, metadata=metadata)


def check_max_steps(max_steps: int) -> None:
    """InputError for a limit that cannot be."""
    if not isinstance(max_steps, int) or max_steps < 1:
        raise InputError(f"max_steps must be at least 1, found {max_steps}")


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")}
    return {"vw2_robot": vw2_robot.__version__, **pybullet_version(), **packages}
