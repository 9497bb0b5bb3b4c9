"""A served policy in a robot's control loop: newest image and instruction in, one command per tick out, never waiting.

The policy is asked in a thread of its own. While there is no command, because the image is stale, the answer is on its
way or nobody gave an instruction, the robot has to stand still. Knows nothing of ROS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vw2_robot.commands import commands, resolve_n_action_steps
from vw2_robot.errors import InputError


class PolicyConnection(Protocol):
    """What the loop needs of a client: `PolicyClient` has it."""

    metadata: dict[str, Any]

    def reset(self) -> None:
        """Begin an episode with the next observation."""

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of the server, `actions` [H, 7]."""


class ControlLoop:
    """One robot. Times are seconds of one clock, the one that stamps the images.

    Args:
        policy: used in the executor only.
        executor: of one thread.
        camera: of the policy.
        max_image_age_seconds: an image that is older, or as far in the future, stops the robot.
        n_action_steps: actions executed per policy call; None: what the server recommends.

    Attributes:
        waits_for: why the last tick had no command; "" where it had one.

    Raises:
        InputError: more action steps than a chunk has, or an age that is not positive.
    """

    def __init__(
        self,
        policy: PolicyConnection,
        executor: Executor,
        *,
        camera: str = "static",
        max_image_age_seconds: float = 0.5,
        n_action_steps: int | None = None,
    ) -> None:
        if not max_image_age_seconds > 0:
            raise InputError(f"max_image_age_seconds={max_image_age_seconds}, expected a positive number")
        self.waits_for = "an instruction"
        self._policy = policy
        self._executor = executor
        self._camera = camera
        self._max_age = max_image_age_seconds
        self._n_action_steps = resolve_n_action_steps(policy.metadata, n_action_steps)
        self._instruction = ""
        self._begins = True
        self._image: tuple[NDArray[np.uint8], float] | None = None
        self._commands: deque[NDArray[np.float64]] = deque()
        self._answer: Future[dict[str, Any]] | None = None

    def set_instruction(self, instruction: str) -> None:
        """Begin an episode, also with the same instruction again; an empty one stops the robot."""
        self._instruction = instruction.strip()
        self._drop()

    def set_image(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Take an image, uint8 [H, W, 3] RGB, and when it was taken."""
        self._image = image, seconds

    def command(self, now: float) -> NDArray[np.float64] | None:
        """Return the command [7] of this tick; None: stand still.

        Raises:
            InputError: the server refused the observation; the next tick asks again.
            ConnectionError: the server is gone.
        """
        self.waits_for = self._missing(now)
        if self.waits_for:
            self._drop()
            return None
        if not self._commands and self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            self._commands.extend(
                commands(answer.result()["actions"], at_least=self._n_action_steps)[: self._n_action_steps]
            )
        if self._commands:
            return self._commands.popleft()
        if self._answer is None:
            self._answer = self._executor.submit(self._ask, self._observation(), self._begins)
            self._begins = False
        self.waits_for = "the policy"
        return None

    def _missing(self, now: float) -> str:
        if not self._instruction:
            return "an instruction"
        if self._image is None:
            return "an image"
        age = now - self._image[1]
        return "" if abs(age) <= self._max_age else f"a new image, the last is {age:.2f} s old"

    def _drop(self) -> None:
        """Forget what was predicted, also an answer that is on its way; the robot begins anew."""
        self._begins = True
        self._commands.clear()
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def _observation(self) -> dict[str, Any]:
        assert self._image is not None
        return {"images": {self._camera: self._image[0]}, "prompt": self._instruction}

    def _ask(self, observation: dict[str, Any], begins: bool) -> dict[str, Any]:
        if begins:
            self._policy.reset()
        return self._policy.infer(observation)
