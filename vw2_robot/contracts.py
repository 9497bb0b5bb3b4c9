"""The interfaces between the parts of the package: actions, observations, policies, benchmarks.

The simulator, the training programs and the rollouts never import one another. They share the protocols of this file,
files on disk, and yaml. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

GRIPPER = "gripper"
CAMERA = "static"
"""name of the camera in data sets and checkpoints that state none"""

# CALVIN `rel_actions`: entries 0..5 in [-1, 1]; one unit is 0.02 m (position) or 0.05 rad (fixed-axis x-y-z Euler
# angle); entry 6 is -1 (close) or +1 (open).
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", GRIPPER)
ACTION_DIM = len(ACTION_NAMES)
GRIPPER_INDEX = 6
POSITION_UNIT_M = 0.02
ROTATION_UNIT_RAD = 0.05

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class ActionSpace:
    """The numbers of a robot's action, all in [-1, 1].

    A number called "gripper" has two commands, -1 (close) and +1 (open); all other numbers are continuous.
    """

    names: tuple[str, ...]
    units: str
    """what the numbers mean, for people: a line of the model card"""

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"the numbers of an action need different names, found {list(self.names)}")

    @property
    def size(self) -> int:
        """A, how many numbers an action has."""
        return len(self.names)

    @property
    def gripper_index(self) -> int | None:
        """Number of the gripper; None if there is none with two commands."""
        return self.names.index(GRIPPER) if GRIPPER in self.names else None


CALVIN_ACTIONS = ActionSpace(
    ACTION_NAMES,
    f"relative, in [-1, 1]; 1 is {POSITION_UNIT_M:g} m or {ROTATION_UNIT_RAD:g} rad; gripper -1 closes, 1 opens",
)
"""what a data set, checkpoint, policy or benchmark has that states no other"""


def action_names(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the numbers of a policy's action, from its metadata."""
    return tuple(metadata.get("action_space", ACTION_NAMES))


class Observation(TypedDict, total=False):
    """The observation of a policy, without a batch axis.

    images: camera name -> uint8 [H, W, 3] RGB. A policy reads the camera of its training data and no other.
    prompt: the instruction.
    """

    images: dict[str, NDArray[np.uint8]]
    prompt: str


class PolicyOutput(TypedDict, total=False):
    """The output of a policy call.

    actions: float32 [H, A], robot units.
    latent_tokens: int64 [latent steps, N], the codes that were decoded before the actions; absent where none were.
    timing: seconds by name.
    """

    actions: NDArray[np.float32]
    latent_tokens: NDArray[np.int64]
    timing: dict[str, float]


@runtime_checkable
class Policy(Protocol):
    """A robot policy: actions from images and an instruction.

    `infer` has no state that `reset` does not clear; equal seed and equal input give equal output; a batch of one
    equals `infer`; a missing camera, wrong dtype or wrong rank raises InputError with key, expected and received.
    """

    metadata: dict[str, Any]

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; `prompt` is the instruction for observations without one."""

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return a chunk of actions for one observation."""

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return chunks for several observations, one of each episode."""


@dataclass(frozen=True)
class EvalSequence:
    """One evaluation chain: an initial state, and the names of the subtasks in their order."""

    number: int
    initial_state: dict[str, Any]
    subtasks: tuple[str, ...]


class Benchmark(Protocol):
    """An environment for closed-loop evaluation. Rows of results depend on (policy, sequence, seed) only.

    Call order: `reset(sequence)`, then per subtask `begin(task)` followed by `observe()`/`step(action)` in any order.
    `observe` renders and `step` does not, so only the images that a policy gets are rendered.
    """

    metadata: dict[str, Any]  # scene, assets, renderer, reset_mode, versions
    max_steps: int  # per subtask
    control_hz: float
    # action_space: ActionSpace, of what `step` takes; may be left out where it is CALVIN's

    def sequences(self, count: int, *, seed: int = 0) -> list[EvalSequence]:
        """Return the first `count` chains; another seed has others. `seed` may be left out where there is one list."""

    def instruction(self, task: str) -> str:
        """Return the instruction of a task."""

    def reset(self, sequence: EvalSequence) -> None:
        """Set the environment to the chain's initial state."""

    def begin(self, task: str) -> None:
        """Start checking this subtask from the present state; the environment does not change."""

    def observe(self) -> Observation:
        """Return the policy's observation, rendered now."""

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Execute one action; return True once the subtask begun last is solved."""

    def close(self) -> None:
        """Free the environment's resources."""


def action_space(benchmark: Benchmark) -> ActionSpace:
    """Return what the actions of a benchmark are."""
    space: ActionSpace = getattr(benchmark, "action_space", CALVIN_ACTIONS)
    return space
