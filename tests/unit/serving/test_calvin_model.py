"""The official evaluator's two calls, against a re-statement of its loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.serving.calvin_model import Vw2CalvinModel

TASKS = ("open", "close", "push", "lift", "turn")
MAX_STEPS = 12


class Table:
    """A world in both dialects: the original's (`get_obs`, 4-tuple `step`, info) and our Benchmark's.

    A task is solved once the actions of its subtask add up to `needed`; an image shows the sum, so that a policy which
    looks at the wrong moment acts differently.
    """

    max_steps, control_hz, needed = MAX_STEPS, 30.0, 1.9
    metadata: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.moved = 0.0
        self.actions: list[np.ndarray] = []

    def reset(self, *_: Any, **__: Any) -> None:
        self.moved = 0.0

    def get_obs(self) -> dict[str, Any]:
        static = np.full((20, 20, 3), int(100 * self.moved) % 256, np.uint8)
        gripper = np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)  # never the same twice
        return {"rgb_obs": {"rgb_static": static, "rgb_gripper": gripper}, "robot_obs": np.zeros(15)}

    def get_info(self) -> dict[str, float]:
        return {"moved": self.moved}

    def act(self, action: np.ndarray) -> None:
        assert action.shape == (7,)
        assert abs(action[6]) == 1
        self.actions.append(np.array(action))
        self.moved += abs(float(action[0]))

    # Our dialect.

    def begin(self, task: str) -> None:
        self.start, self.task = self.get_info(), task

    def instruction(self, task: str) -> str:
        return f"please {task}"

    def observe(self) -> dict[str, Any]:
        return {"images": {"static": self.get_obs()["rgb_obs"]["rgb_static"]}}

    def step(self, action: np.ndarray) -> Any:
        self.act(action)
        if hasattr(self, "start"):
            return self.get_info()["moved"] - self.start["moved"] > self.needed
        return self.get_obs(), 0, False, self.get_info()


class Looking:
    """Acts by what it sees and is told; knows nothing of time."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {"chunk_size": 5, "n_action_steps": 3, "cameras": ["static"]}
        self.seen: list[Any] = []

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        pass

    def infer(self, obs: Any) -> dict[str, Any]:
        assert set(obs["images"]) == {"static"}
        self.seen.append(obs)
        rng = np.random.default_rng([int(obs["images"]["static"][0, 0, 0]), len(obs["prompt"])])
        return {"actions": rng.normal(0, 0.25, (5, 7)).astype(np.float32)}

    def infer_batch(self, obs: Any) -> list[Any]:
        return [self.infer(one) for one in obs]


def official_loop(env: Table, model: Any, chain: EvalSequence) -> int:
    """What `evaluate_sequence` and `rollout` of the official evaluator do, in their order of calls."""
    env.reset()
    for solved, task in enumerate(chain.subtasks):
        obs = env.get_obs()
        model.reset()
        start = env.get_info()
        for _ in range(MAX_STEPS):
            obs, _, _, info = env.step(model.step(obs, f"please {task}"))
            if info["moved"] - start["moved"] > env.needed:
                break
        else:
            return solved
    return len(chain.subtasks)


@pytest.mark.parametrize("every", [None, 1, 2, 5])
def test_the_official_loop_and_ours_execute_the_same_actions(every: int | None) -> None:
    chains = [EvalSequence(n, {}, TASKS[n % 5 :] + TASKS[: n % 5]) for n in range(10)]
    ours, theirs = Table(), Table()
    rows = evaluate(Looking(), ours, chains, n_action_steps=every)  # type: ignore[arg-type]
    model = Vw2CalvinModel(Looking(), n_action_steps=every)
    assert [official_loop(theirs, model, chain) for chain in chains] == [row["solved"] for row in rows]
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert len({row["solved"] for row in rows}) > 1


def test_a_reset_drops_what_is_left_of_the_chunk() -> None:
    policy, table = Looking(), Table()
    model = Vw2CalvinModel(policy)
    for _ in range(4):
        model.step(table.get_obs(), "please open")
    assert len(policy.seen) == 2
    model.reset()
    model.step(table.get_obs(), "please open")
    assert len(policy.seen) == 3


def test_a_changed_gripper_image_changes_nothing() -> None:
    model, table = Vw2CalvinModel(Looking(), n_action_steps=1), Table()
    obs = table.get_obs()
    first = model.step(obs, "please open")
    obs["rgb_obs"]["rgb_gripper"] = 255 - obs["rgb_obs"]["rgb_gripper"]
    np.testing.assert_array_equal(model.step(obs, "please open"), first)


def test_what_the_evaluator_must_not_send_is_named() -> None:
    model = Vw2CalvinModel(Looking())
    with pytest.raises(InputError, match="instruction as a string, found ndarray"):
        model.step(Table().get_obs(), np.zeros(384))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"rgb_static\"\] is missing; found \['rgb_gripper'\]"):
        model.step({"rgb_obs": {"rgb_gripper": np.zeros((8, 8, 3), np.uint8)}}, "please open")
    with pytest.raises(InputError, match="n_action_steps=6"):
        Vw2CalvinModel(Looking(), n_action_steps=6)
    with pytest.raises(InputError, match="nothing_here"):
        Vw2CalvinModel("/nothing_here")
