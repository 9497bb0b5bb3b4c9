"""Takeovers: a trained policy acts first, and the expert demonstrates the rest of the task from where that led.

Demonstrations from the states that a policy itself reaches are those of DAgger (Ross et al., "A Reduction of Imitation
Learning and Structured Prediction to No-Regret Online Learning", 2011).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vw2_robot.chunks import ChunkQueue

from ..calvin import CalvinEnv
from ..experts.motion import Action


@dataclass(frozen=True)
class Takeovers:
    """The policy that acts before the expert, and how often and how long."""

    policy: ChunkQueue
    share: float
    """Share of tasks that the policy begins."""
    env_steps: tuple[int, int]
    """Fewest and most control steps of the policy, both included."""

    def act(self, env: CalvinEnv, instruction: str, rng: np.random.Generator) -> Iterator[Action]:
        """Yield the policy's actions from the present state, for a random number of control steps.

        Args:
            env: the environment; the caller executes each action before it takes the next.
            instruction: of the task.
            rng: generator of the number of steps and of the policy's seed.
        """
        self.policy.reset(instruction, seed=int(rng.integers(2**32)))
        for _ in range(int(rng.integers(self.env_steps[0], self.env_steps[1] + 1))):
            images = {"static": env.render_camera("static")} if self.policy.needs_observation else {}
            yield self.policy.action({"images": images, "prompt": instruction}).astype(np.float64)


def open_policy(name: str) -> ChunkQueue:
    """Load a fine-tuned policy on the CPU, with one thread, so that its actions do not depend on the machine's cores.

    Raises:
        InputError: no such policy, or a damaged one.
    """
    # Imported here: recordings without a policy need no torch.
    import torch

    from vw2_robot.agent import VW2Agent

    torch.set_num_threads(1)
    return ChunkQueue(VW2Agent.from_pretrained(name))
