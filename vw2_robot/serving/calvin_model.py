"""A policy of ours under the official CALVIN evaluator: `evaluate_policy(model, env)` of `mees/calvin`.

    from calvin_agent.evaluation.evaluate_policy import evaluate_policy, make_env
    from vw2_robot.serving.calvin_model import Vw2CalvinModel

    evaluate_policy(Vw2CalvinModel("runs/first/finetune"), make_env("DIR/task_ABC_D"), epoch=0)

The evaluator calls `reset()` at the start of each subtask and `step(obs, goal)` before each control step, with the raw
instruction as goal. It draws all cameras in every step; the policy is shown the static one, every `n_action_steps`
steps. Actions are what `vw2-rollout` executes: seven numbers, six in [-1, 1] and a gripper that is exactly -1 or +1.
Imports nothing of CALVIN. docs/evaluation.md says what to install and how the two evaluators compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.chunks import ChunkQueue
from vw2_robot.commands import commands
from vw2_robot.contracts import Observation, Policy
from vw2_robot.errors import InputError

STATIC = "rgb_static"


class Vw2CalvinModel:
    """What the evaluator calls a custom model: `reset` and `step`."""

    def __init__(self, policy: Policy | str | Path, *, n_action_steps: int | None = None, device: str = "cpu") -> None:
        """`policy`: any policy, or what `VW2Agent.from_pretrained` takes.

        Raises:
            InputError: no such checkpoint, or more steps between two looks than the policy predicts.
        """
        if isinstance(policy, str | Path):
            from vw2_robot.agent import VW2Agent

            policy = VW2Agent.from_pretrained(policy, device=device, n_action_steps=n_action_steps)
        self._queue = ChunkQueue(policy, n_action_steps=n_action_steps)

    def reset(self) -> None:
        """Begin a subtask: forget the rest of the last chunk."""
        self._queue.reset()

    def step(self, obs: Mapping[str, Any], goal: str) -> NDArray[np.float64]:
        """The action [7] for this control step.

        Raises:
            InputError: `goal` is no text (an embedding, as in older evaluators), or there is no static image.
        """
        if not isinstance(goal, str):
            raise InputError(f"goal must be the instruction in words, found {type(goal).__name__}")
        look: Observation = {"images": {}, "prompt": goal}
        if self._queue.needs_observation and self._queue.policy.metadata.get("cameras", ["static"]):
            look["images"] = {"static": _static(obs)}
        return commands(self._queue.action(look)[None], at_least=1)[0]


def _static(obs: Mapping[str, Any]) -> NDArray[np.uint8]:
    images = obs.get("rgb_obs")
    if not isinstance(images, Mapping) or STATIC not in images:
        found = sorted(images) if isinstance(images, Mapping) else sorted(obs)
        raise InputError(f'obs["rgb_obs"]["{STATIC}"] is missing; found {found}')
    image: NDArray[np.uint8] = np.ascontiguousarray(images[STATIC])
    return image
