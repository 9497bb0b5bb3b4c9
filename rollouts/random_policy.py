"""The random policy: uniform actions without looking at images, the lower bound of every comparison.

Actions come from a generator that `reset` seeds, so a repeated chain gives the same row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vw2_robot import __version__
from vw2_robot.contracts import ACTION_NAMES, Observation, PolicyOutput


class RandomPolicy:
    """A `vw2_robot.contracts.Policy` with uniform actions in [-1, 1].

    `infer` depends on the seed of the last `reset` and on the number of calls since.
    """

    metadata: dict[str, Any]

    def __init__(self, *, chunk_size: int = 4, names: Sequence[str] = ACTION_NAMES) -> None:
        """Make a policy that returns `chunk_size` actions per call, each of as many numbers as there are names."""
        self.metadata = {
            "name": "random",
            "version": __version__,
            "action_space": list(names),
            "chunk_size": chunk_size,
            "n_action_steps": chunk_size,
            "cameras": [],
            "policy_hash": None,
            "label_fraction": None,
        }
        self._rng = np.random.default_rng(0)

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Restart the generator from `seed` (0 if none is given)."""
        self._rng = np.random.default_rng(seed or 0)

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return a chunk of random actions, float32 [H, A] in [-1, 1]."""
        actions = self._rng.uniform(-1.0, 1.0, size=(self.metadata["chunk_size"], len(self.metadata["action_space"])))
        return {"actions": actions.astype(np.float32)}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return one chunk per observation."""
        return [self.infer(one) for one in obs]
