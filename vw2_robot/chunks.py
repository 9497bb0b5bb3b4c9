"""Chunks of actions in time: averaging those that overlap, and handing them out one by one.

A policy that looks every E steps answers with a chunk of H >= E actions, so several chunks speak of one time step.
`Ensemble` averages them (temporal ensembling of Zhao et al., "Learning Fine-Grained Bimanual Manipulation", 2023).
`ChunkQueue` is for robot stacks that want one action per step; the rollouts of this package cut chunks themselves.
"""

# B episodes side by side · H actions of a chunk · A action dims · E steps between two looks
from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import Observation, Policy
from vw2_robot.errors import InputError


class Ensemble:
    """Weighted mean of the chunks that cover a time step, the oldest with weight 1, each later one exp(-decay) less.

    Chunks arrive every `n_action_steps` steps. Average predictions before the gripper becomes a sign.
    """

    def __init__(self, n_action_steps: int, *, decay: float) -> None:
        if n_action_steps < 1 or not decay >= 0:
            raise InputError(
                f"ensembling needs n_action_steps >= 1 and a decay >= 0, found {n_action_steps} and {decay}"
            )
        self.n_action_steps, self.decay = n_action_steps, decay
        self._chunks: deque[NDArray[np.float32]] = deque()

    def clear(self) -> None:
        """Forget all chunks: a new episode."""
        self._chunks.clear()

    def blend(self, chunk_BHA: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the chunk of this look; returns it with every step averaged over all chunks that cover it.

        Raises:
            InputError: another number of episodes than before.
        """
        if self._chunks and self._chunks[0].shape != chunk_BHA.shape:
            raise InputError(
                f"temporal ensembling follows {len(self._chunks[0])} episodes, found {len(chunk_BHA)} observations; "
                "call reset between episodes and keep their order"
            )
        self._chunks.append(chunk_BHA)
        chunk_size = chunk_BHA.shape[1]
        while (len(self._chunks) - 1) * self.n_action_steps >= chunk_size:  # the oldest ends before now
            self._chunks.popleft()
        total, weights = np.zeros_like(chunk_BHA, dtype=np.float64), np.zeros(chunk_size)
        for age, chunk in enumerate(reversed(self._chunks)):
            offset = age * self.n_action_steps
            # Steps 0 .. chunk_size - offset - 1 of now are steps offset .. chunk_size - 1 of that chunk.
            kept = chunk_size - offset
            # Which one is the oldest differs from step to step, but a common factor leaves a mean as it is.
            weight = np.exp(-self.decay * (len(self._chunks) - 1 - age))
            total[:, :kept] += weight * chunk[:, offset:]
            weights[:kept] += weight
        return (total / weights[:, None]).astype(np.float32)


class ChunkQueue:
    """One action per step from a policy that answers in chunks: looks every `n_action_steps` steps, drops the rest."""

    def __init__(self, policy: Policy, *, n_action_steps: int | None = None) -> None:
        self.policy = policy
        self.n_action_steps = int(policy.metadata["n_action_steps"] if n_action_steps is None else n_action_steps)
        if not 1 <= self.n_action_steps <= policy.metadata["chunk_size"]:
            raise InputError(
                f"n_action_steps={self.n_action_steps}, but the policy predicts {policy.metadata['chunk_size']} actions"
            )
        self._waiting: deque[NDArray[np.float32]] = deque()

    @property
    def needs_observation(self) -> bool:
        """Whether the next action needs a new observation."""
        return not self._waiting

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode."""
        self._waiting.clear()
        self.policy.reset(prompt, seed)

    def action(self, observation: Observation) -> NDArray[np.float32]:
        """The action [A] of this step; the observation is looked at only when one is due."""
        if self.needs_observation:
            self._waiting.extend(self.policy.infer(observation)["actions"][: self.n_action_steps])
        return self._waiting.popleft()
