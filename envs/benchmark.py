"""CALVIN's evaluation protocols as a `vw2_robot.contracts.Benchmark`: simulator, chains, instructions and task oracle.

One object is the environment of one worker. A chain: `reset(sequence)`; for each of its five subtasks `begin(task)`,
then up to `max_steps` times `step(action)`, with `observe()` whenever the policy needs an observation; `step` returns
True once the oracle confirms the subtask since its `begin`. The simulator is not reset between subtasks. Only the
chains in scene D are the published benchmark; with "exact" resets the outcome of a chain does not depend on the chains
before.

`CalvinProtocol` is everything but the simulator: `CalvinBenchmark` runs it in ours, `CalvinReference`
(calvin_reference.py) in the original. Single tasks are chains of length one, see single_tasks.py.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Protocol, cast

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

import vw2_robot
from vw2_robot.contracts import EvalSequence, Observation
from vw2_robot.errors import InputError

from . import CALVIN_ID
from .calvin import CONTROL_HZ, CalvinEnv
from .cameras import RENDERER_VERSIONS
from .experts.demonstrator import DemonstratorPolicy
from .instructions import choose_instruction, read_instructions
from .oracle import TaskOracle
from .physics import pybullet_version
from .sequences import make_sequences, start_state
from .single_tasks import block_poses, fork_tasks, go_to_single_start, needs_prelude, single_tasks

if TYPE_CHECKING:
    from .live.world import CalvinWorld

MAX_STEPS = 360


class Simulator(Protocol):
    """What the protocol needs of a simulator."""

    scene_name: str

    def reset_physics(self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> None:
        """Go to a state: `robot_obs` [15], `scene_obs` [24]."""

    def step_physics(self, action: Any) -> None:
        """Execute one control step."""

    def task_info(self) -> dict[str, Any]:
        """Return what the task oracle compares."""

    def render_camera(self, name: str) -> NDArray[np.uint8]:
        """Return one image, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Free the simulator."""


class CalvinProtocol:
    """The protocols in any simulator of CALVIN. Policies observe the static camera and the instruction, nothing else.

    Args:
        world: the simulator.
        oracle: has `get_task_info_for_set(start_info, end_info, tasks)`: `TaskOracle`, or the original's.
        max_steps: control steps per subtask.
        instructions: name or file, see `read_instructions`.
        metadata: what the report states about the simulator.
    """

    def __init__(
        self, world: Simulator, oracle: Any, *, max_steps: int, instructions: str, metadata: dict[str, Any]
    ) -> None:
        self.max_steps = max_steps
        self.control_hz = float(CONTROL_HZ)
        self.metadata = metadata | {"instructions": str(instructions)}
        self._world = world
        self._oracle = oracle
        self._instructions = read_instructions(instructions)
        self._chain: int | None = None
        self._task: str | None = None
        self._start_info: dict[str, Any] = {}

    def sequences(self, count: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return the first `count` of the 1000 chains; seed 0 has the published ones."""
        return make_sequences(count, seed=seed)

    def single_tasks(self, per_task: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return each of the 34 tasks as a chain of one, `per_task` times; another seed has other starts."""
        return single_tasks(per_task, seed=seed)

    def fork_tasks(self, per_task: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return each task with two routes whose mean is bad as a chain of one, `per_task` times."""
        return fork_tasks(per_task, seed=seed)

    def instruction(self, task: str) -> str:
        """Return the instruction for `task` in the present chain; before any chain, the first of the task.

        Raises:
            InputError: an unknown task.
        """
        if task not in self._instructions:
            raise InputError(f"unknown task {task!r}; known: {', '.join(self._instructions)}")
        return choose_instruction(self._instructions[task], task, self._chain)

    def reset(self, sequence: EvalSequence) -> None:
        """Bring the simulator to the start of a chain."""
        if needs_prelude(sequence):
            go_to_single_start(cast(CalvinEnv, self._world), sequence, self._oracle)
        else:
            poses = block_poses(sequence)
            robot_obs, scene_obs = start_state(sequence.initial_state, self._world.scene_name, poses=poses)
            self._world.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        self._chain = sequence.number
        self._task = None

    def begin(self, task: str) -> None:
        """Begin a subtask: `task` is solved once it has happened after this moment."""
        self.instruction(task)  # raises for an unknown task
        self._task = task
        # The oracle compares this moment with that of each later step.
        self._start_info = self._world.task_info()

    def observe(self) -> Observation:
        """Return the present observation of a policy: the static camera's image, and the instruction."""
        task = self._current_task()
        return {"images": {"static": self._world.render_camera("static")}, "prompt": self.instruction(task)}

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Execute one control step; return whether the present subtask is solved."""
        task = self._current_task()
        self._world.step_physics(action)
        return bool(self._oracle.get_task_info_for_set(self._start_info, self._world.task_info(), {task}))

    def expert(self) -> DemonstratorPolicy:
        """Return the scripted expert as a policy; it reads the simulator's state, not the image."""
        world = cast(CalvinEnv, self._world)  # the expert uses task_info, target_pose and scene_name only
        # A policy is given the instruction alone, so the expert must map it back to the task.
        tasks = {text: task for task, texts in self._instructions.items() for text in texts}
        return DemonstratorPolicy(world, tasks)

    def close(self) -> None:
        """Free the simulator."""
        self._world.close()

    def _current_task(self) -> str:
        if self._task is None:
            raise RuntimeError("call begin(task) after reset and before observe() or step()")
        return self._task


class CalvinBenchmark(CalvinProtocol):
    """A CALVIN table with its 1000 chains, in our simulator; for the arguments see `CalvinEnv`."""

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
        read_instructions(instructions)  # raises for a wrong name before the simulator is built
        # Without cameras in the observation: images are rendered when the policy needs one.
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
            "renderer_version": RENDERER_VERSIONS[self.env.renderer],
            "reset_mode": reset_mode,
            "versions": {
                "vw2_robot": vw2_robot.__version__,
                **pybullet_version(),
                **{name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")},
            },
        }
        super().__init__(self.env, TaskOracle(), max_steps=max_steps, instructions=instructions, metadata=metadata)

    def live_world(self) -> CalvinWorld:
        """Return the simulator as `vw2-live` shows it."""
        # Imported here: no evaluation needs it.
        from .live.world import CalvinWorld

        return CalvinWorld(self, self.env)


def check_max_steps(max_steps: int) -> None:
    """Raise an InputError for a limit below 1."""
    if not isinstance(max_steps, int) or max_steps < 1:
        raise InputError(f"max_steps must be at least 1, found {max_steps}")
