"""A policy whose actions repeat what it was given, so that an answer shows whose request it belongs to."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vw2_robot.contracts import Observation, PolicyOutput


class EchoPolicy:
    """Action k is (sum of the image, length of the prompt, calls since reset, seed, k, 0, 0).

    Attributes:
        batches: sizes of the batches, of all clones.
        free: cleared, the policy computes until it is set again.
        errors: the first one, if there is one, is raised by each call of all clones.
    """

    def __init__(self, *, is_stateless: bool = True) -> None:
        self.metadata: dict[str, Any] = {"cameras": ["static"], "chunk_size": 4, "n_action_steps": 2}
        self.is_stateless = is_stateless
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.errors: list[Exception] = []
        self.reset()

    def clone(self) -> EchoPolicy:
        return copy.copy(self)

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        self.calls, self.seed = 0, seed

    def infer(self, obs: Observation) -> PolicyOutput:
        return self.infer_batch([obs])[0]

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        self.free.wait()
        if self.errors:
            raise self.errors[0]
        self.batches.append(len(obs))
        self.calls += 1
        return [self.output(one) for one in obs]

    def output(self, obs: Observation) -> PolicyOutput:
        actions = np.zeros((4, 7), np.float32)
        actions[:, :4] = obs["images"]["static"].sum(), len(obs["prompt"]), self.calls, self.seed or 0
        actions[:, 4] = range(4)
        return {"actions": actions, "latent_tokens": np.arange(4).reshape(1, 4), "timing": {"infer_s": 0.0}}
