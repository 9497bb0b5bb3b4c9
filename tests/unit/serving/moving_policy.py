"""A policy whose actions lie in [-1, 1] and name the image, the instruction, the call and their place in the chunk."""

from __future__ import annotations

import numpy as np

from vw2_robot.contracts import Observation, PolicyOutput

from .echo_policy import EchoPolicy


class MovingPolicy(EchoPolicy):
    """Action k is (first pixel / 255, length of the prompt / 100, calls / 100, 0.1, 0.2, k / 10, gripper).

    The gripper closes where the prompt has the word.
    """

    def output(self, obs: Observation) -> PolicyOutput:
        actions = np.zeros((4, 7), np.float32)
        actions[:, :5] = obs["images"]["static"][0, 0, 0] / 255, len(obs["prompt"]) / 100, self.calls / 100, 0.1, 0.2
        actions[:, 5] = np.arange(4) / 10
        actions[:, 6] = -1 if "close" in obs["prompt"] else 1
        return {"actions": actions}
