"""A world small enough to know every answer: a subtask wants so many good steps, and a policy gives them or does not.

Lies on the import path during these tests, so that worker processes can build it by name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

TASKS = ("open", "close", "push", "lift", "turn")


class CountingBenchmark:
    """A subtask is solved by its `needed[task]`-th step with a positive first entry; calls are written down.

    knows: tasks that `expert()` can do. trouble: what happens when chain 3 begins; a path: die, until that file exists.
    """

    def __init__(
        self,
        *,
        needed: dict[str, int] | None = None,
        max_steps: int = 12,
        chains: int = 6,
        knows: Sequence[str] = TASKS,
        trouble: str = "",
        reset_mode: str = "exact",
    ) -> None:
        self.metadata: dict[str, Any] = {"scene": "count", "reset_mode": reset_mode}
        self.knows, self.trouble = tuple(knows), trouble
        self.max_steps, self.control_hz = max_steps, 30.0
        self.needed = needed or dict.fromkeys(TASKS, 3)
        self.chains = chains
        self.calls: list[tuple[str, Any]] = []
        self.actions: list[np.ndarray] = []
        self._good = 0
        self._task = ""

    def sequences(self, count: int, *, seed: int = 0) -> list[EvalSequence]:
        shifts = [(n, (n + seed) % 5) for n in range(min(count, self.chains))]
        return [EvalSequence(n, {"shift": n}, (*TASKS[shift:], *TASKS[:shift])) for n, shift in shifts]

    def single_tasks(self, per_task: int) -> list[EvalSequence]:
        return [
            EvalSequence(10 * i + n, {"shift": n}, (task,)) for n in range(per_task) for i, task in enumerate(TASKS)
        ]

    def instruction(self, task: str) -> str:
        return f"please {task}"

    def reset(self, sequence: EvalSequence) -> None:
        self.calls.append(("reset", sequence.number))
        if sequence.number == 3:
            self._meet_trouble()

    def _meet_trouble(self) -> None:
        if self.trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if "/" in self.trouble and not Path(self.trouble).exists():
            Path(self.trouble).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "input":
            raise InputError("the world is out of tables")
        if self.trouble == "bug":
            raise ZeroDivisionError("a bug of ours")

    def expert(self) -> ScriptedPolicy:
        return ScriptedPolicy(self.knows)

    def begin(self, task: str) -> None:
        self.calls.append(("begin", task))
        self._task, self._good = task, 0

    def observe(self) -> dict[str, Any]:
        self.calls.append(("observe", self._task))
        shade = 40 * TASKS.index(self._task) + self._good
        return {"images": {"static": np.full((20, 20, 3), shade, dtype=np.uint8)}}

    def step(self, action: np.ndarray) -> bool:
        self.calls.append(("step", self._task))
        self.actions.append(np.array(action))
        self._good += bool(action[0] > 0)
        return self._good >= self.needed[self._task]

    def close(self) -> None:
        self.calls.append(("close", None))


class ScriptedPolicy:
    """Succeeds at the tasks in `knows`; `chunk` overrides its actions."""

    hash = "ab" * 32
    device = "cpu"

    def __init__(
        self, knows: tuple[str, ...] = TASKS, *, chunk: np.ndarray | None = None, n_action_steps: int | None = 4
    ) -> None:
        self.metadata: dict[str, Any] = {
            "name": "scripted",
            "chunk_size": 8,
            "policy_hash": self.hash,
            "label_fraction": 0.1,
        }
        if n_action_steps is not None:
            self.metadata["n_action_steps"] = n_action_steps
        self.knows, self.chunk = knows, chunk
        self.calls: list[tuple[str, Any]] = []

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        self.calls.append(("reset", (prompt, seed)))

    def infer(self, obs: Any) -> dict[str, Any]:
        self.calls.append(("infer", obs["prompt"]))
        if self.chunk is not None:
            return {"actions": self.chunk}
        good = obs["prompt"].removeprefix("please ") in self.knows
        return {"actions": np.full((8, 7), 0.5 if good else -0.5, dtype=np.float32)}

    def infer_batch(self, obs: Any) -> list[dict[str, Any]]:
        return [self.infer(one) for one in obs]
