"""The adapter of a policy for the official CALVIN evaluator, `evaluate_policy(model, env)` of `mees/calvin`.

    from calvin_agent.evaluation.evaluate_policy import evaluate_policy, make_env
    from vw2_robot.serving.calvin_model import Vw2CalvinModel

    evaluate_policy(Vw2CalvinModel("runs/first/finetune"), make_env("DIR/task_ABC_D"), epoch=0)

The evaluator calls `reset()` at the start of each subtask and `step(obs, goal)` before each control step, with the raw
instruction as goal. It renders all cameras in every step; the policy gets the static one, every `n_action_steps`
steps. Actions are what `vw2-rollout` executes: seven numbers, six in [-1, 1] and a gripper that is exactly -1 or +1.
Imports nothing of CALVIN. docs/evaluation.md describes the installation and compares the two evaluators.
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
    """A custom model of the evaluator: `reset` and `step`."""

    def __init__(self, policy: Policy | str | Path, *, n_action_steps: int | None = None, device: str = "cpu") -> None:
        """Wrap a policy.

        Args:
            policy: any policy, or what `VW2Agent.from_pretrained` takes.
            n_action_steps: actions executed per policy call; None: as trained.
            device: of a policy that is loaded here.

        Raises:
            InputError: no such checkpoint, or more action steps than a chunk has actions.
        """
        if isinstance(policy, str | Path):
            # Imported here, so that a policy of another kind needs no torch.
            from vw2_robot.agent import VW2Agent

            policy = VW2Agent.from_pretrained(policy, device=device, n_action_steps=n_action_steps)
        self._queue = ChunkQueue(policy, n_action_steps=n_action_steps)

    def reset(self) -> None:
        """Begin a subtask: drop the rest of the last chunk."""
        # Without an instruction: the evaluator gives it with every step.
        self._queue.reset()

    def step(self, obs: Mapping[str, Any], goal: str) -> NDArray[np.float64]:
        """Return the action [7] for this control step.

        Args:
            obs: of CALVIN's environment; only `obs["rgb_obs"]["rgb_static"]` is read.
            goal: the instruction.

        Raises:
            InputError: `goal` is no text (an embedding, as in older evaluators), or there is no static image.
        """
        if not isinstance(goal, str):
            raise InputError(f"goal must be the instruction as a string, found {type(goal).__name__}")
        observation: Observation = {"images": {}, "prompt": goal}
        # Between two policy calls the image is not read; policies without cameras never get one.
        if self._queue.needs_observation and self._queue.policy.metadata.get("cameras", ["static"]):
            images = obs.get("rgb_obs")
            if not isinstance(images, Mapping) or STATIC not in images:
                found = sorted(images) if isinstance(images, Mapping) else sorted(obs)
                raise InputError(f'obs["rgb_obs"]["{STATIC}"] is missing; found {found}')
            # CALVIN cuts the colors out of RGBA, so its image may be a view with gaps.
            observation["images"] = {"static": np.ascontiguousarray(images[STATIC])}
        # The conversion of `vw2-rollout`: both evaluators execute the same numbers.
        return commands(self._queue.action(observation)[None], at_least=1)[0]
