"""A world small enough to know every answer: each subtask asks for one number, and the policy has to say it in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vw2_robot.contracts import EvalSequence

TASKS = ("open", "close", "push", "lift", "turn")


class CountingBenchmark:
    """A subtask is solved by its `needed[task]`-th step whose first action entry is positive; calls are written down."""

    def __init__(self, *, needed: dict[str, int] | None = None, max_steps: int = 12, chains: int = 6) -> None:
        self.metadata: dict[str, Any] = {"scene": "count", "reset_mode": "exact"}
        self.max_steps, self.control_hz = max_steps, 30.0
        self.needed = needed or dict.fromkeys(TASKS, 3)
        self.chains = chains
        self.calls: list[tuple[str, Any]] = []
        self.actions: list[np.ndarray] = []
        self._good = 0
        self._task = ""

    def sequences(self, count: int) -> list[EvalSequence]:
        return [
            EvalSequence(n, {"shift": n}, (*TASKS[n % 5 :], *TASKS[: n % 5])) for n in range(min(count, self.chains))
        ]

    def instruction(self, task: str) -> str:
        return f"please {task}"

    def reset(self, sequence: EvalSequence) -> None:
        self.calls.append(("reset", sequence.number))

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

    def __init__(
        self, knows: tuple[str, ...] = TASKS, *, chunk: np.ndarray | None = None, replan_every: int | None = 4
    ) -> None:
        self.metadata: dict[str, Any] = {
            "name": "scripted",
            "horizon": 8,
            "policy_hash": "ab" * 32,
            "label_fraction": 0.1,
        }
        if replan_every is not None:
            self.metadata["replan_every"] = replan_every
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


@pytest.fixture
def benchmark() -> CountingBenchmark:
    return CountingBenchmark()


@pytest.fixture
def make_benchmark() -> type[CountingBenchmark]:
    return CountingBenchmark


@pytest.fixture
def make_policy() -> type[ScriptedPolicy]:
    return ScriptedPolicy
