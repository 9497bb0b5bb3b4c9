"""What crosses a border between two parts of the package: actions, observations, policies, benchmarks.

The simulator, the training programs and the rollouts never import one another; they meet in the protocols of this file,
in files on disk, or in yaml. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# CALVIN `rel_actions`: entries 0..5 in [-1, 1]; one unit is 0.02 m (position) or 0.05 rad (fixed-axis x-y-z Euler
# angle); entry 6 is -1 (close) or +1 (open). Calvin specification: section 6.
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
ACTION_DIM = len(ACTION_NAMES)
GRIPPER_INDEX = 6
POSITION_UNIT_M = 0.02
ROTATION_UNIT_RAD = 0.05

Split = Literal["train", "validation"]


class Observation(TypedDict, total=False):
    """What a policy may look at, without a batch axis.

    images: camera name -> uint8 [H, W, 3] RGB. CALVIN policies get "static" and nothing else.
    prompt: the instruction in words.
    """

    images: dict[str, NDArray[np.uint8]]
    prompt: str


class PolicyOutput(TypedDict, total=False):
    """actions: float32 [H, A], robot units. latent_tokens: int64 [K, N] codes behind them. timing: seconds by name."""

    actions: NDArray[np.float32]
    latent_tokens: NDArray[np.int64]
    timing: dict[str, float]


@runtime_checkable
class Policy(Protocol):
    """Anything that can drive a robot from images and words.

    `infer` holds no hidden state that `reset` does not clear; equal seed and equal input give equal output; a batch of
    one equals `infer`; a missing camera, wrong dtype or wrong rank raises InputError naming key, expected and received.
    """

    metadata: dict[str, Any]

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode."""

    def infer(self, obs: Observation) -> PolicyOutput:
        """One observation -> a chunk of actions."""

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Several observations of as many episodes, at once."""


@dataclass(frozen=True)
class EvalSequence:
    """One evaluation chain: a start state and the subtasks asked for in turn, by task name."""

    number: int
    initial_state: dict[str, Any]
    subtasks: tuple[str, ...]


class Benchmark(Protocol):
    """A world that can be evaluated in closed loop. Rows of results depend on (policy, sequence, seed) only.

    Call order: `reset(sequence)`, then per subtask `begin(task)` followed by `observe()`/`step(action)` in any mixture.
    `observe` renders, `step` does not: a policy that looks every fourth step pays for every fourth image.
    """

    metadata: dict[str, Any]  # scene, assets, renderer, reset_mode, versions
    max_steps: int  # per subtask
    control_hz: float

    def sequences(self, count: int) -> list[EvalSequence]:
        """The first `count` chains."""

    def instruction(self, task: str) -> str:
        """The words that ask for a task."""

    def reset(self, sequence: EvalSequence) -> None:
        """Put the world into the chain's initial state."""

    def begin(self, task: str) -> None:
        """Start judging this subtask from the present state; the world is not moved."""

    def observe(self) -> Observation:
        """Render what the policy may see."""

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Act once; True once the subtask begun last is solved."""

    def close(self) -> None:
        """Free the world."""
