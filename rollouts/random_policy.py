"""The floor of every comparison: a policy that looks at nothing and moves at random.

Uniform actions, drawn from a generator that `reset` seeds; so a chain replayed gives the same row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vw2_robot import __version__
from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES, Observation, PolicyOutput


class RandomPolicy:
    """Implements `vw2_robot.contracts.Policy` with uniform actions in [-1, 1].

    `infer` depends on the seed of the last `reset` and on how many chunks were asked for since.
    """

    metadata: dict[str, Any]

    def __init__(self, *, chunk_size: int = 4) -> None:
        self.metadata = {
            "name": "random",
            "version": __version__,
            "action_space": list(ACTION_NAMES),
            "chunk_size": chunk_size,
            "n_action_steps": chunk_size,
            "cameras": [],
            "policy_hash": None,
            "label_fraction": None,
        }
        self._rng = np.random.default_rng(0)

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Start over from `seed` (0 if none is given)."""
        self._rng = np.random.default_rng(seed or 0)

    def infer(self, obs: Observation) -> PolicyOutput:
        """A chunk of random actions."""
        actions = self._rng.uniform(-1.0, 1.0, size=(self.metadata["chunk_size"], ACTION_DIM))
        return {"actions": actions.astype(np.float32)}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """One chunk for each observation."""
        return [self.infer(one) for one in obs]
