"""Gymnasium environments in our rollouts: a world of one number, our simulator, and the page about it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from vw2_robot.contracts import EvalSequence
from vw2_robot.envs.gymnasium_benchmark import GymnasiumBenchmark
from vw2_robot.errors import InputError
from vw2_robot.rollouts.config import RolloutConfig, choose_sequences, open_benchmark
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.rollouts.random_policy import RandomPolicy

PAGE = Path(__file__).resolve().parents[3] / "docs" / "integrations" / "gymnasium.md"
TASKS = {"right": "go to the right", "left": "go to the left"}


class Line(gymnasium.Env[Any, Any]):
    """A point on a line; the task is done at +1 or -1. It renders its place as a shade."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, goal: str = "right", render_mode: str | None = None, size: int = 7, fall: bool = False) -> None:
        self.goal, self.render_mode, self.fall = {"right": 1, "left": -1}[goal], render_mode, fall
        self.action_space = spaces.Box(-1, 1, (size,), np.float32)
        image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space = spaces.Dict({"pixels": spaces.Dict({"top": image})})
        self.rendered = self.moved = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.5, 0.5)
        return self._see(), {}

    def step(self, action: Any) -> Any:
        assert action.dtype == np.float32
        self.moved += 1
        self.place += float(action[0])
        won = self.place * self.goal >= 1
        fell = self.fall and self.place * self.goal <= -1
        return self._see(), float(won), won or fell, False, {"is_success": np.bool_(won)}

    def render(self) -> Any:
        self.rendered += 1
        return self._see()["pixels"]["top"]

    def _see(self) -> Any:
        return {"pixels": {"top": np.full((8, 8, 3), int(np.clip(100 + 50 * self.place, 0, 255)), np.uint8)}}


class Following:
    """Goes where the instruction says; remembers what it saw."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {"chunk_size": 4, "n_action_steps": 2, "cameras": ["static"]}
        self.seen: list[tuple[int, str]] = []

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        pass

    def infer(self, obs: Any) -> dict[str, Any]:
        self.seen.append((int(obs["images"]["static"][0, 0, 0]), obs["prompt"]))
        return {"actions": np.full((4, 7), 0.3 if "right" in obs["prompt"] else -0.3, np.float32)}

    def infer_batch(self, obs: Any) -> list[Any]:
        return [self.infer(one) for one in obs]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Line-v0", entry_point=Line, max_episode_steps=9)
    yield
    del gymnasium.registry["Line-v0"]


def line(**options: Any) -> GymnasiumBenchmark:
    return GymnasiumBenchmark(**({"id": "Line-v0", "tasks": TASKS, "task_argument": "goal"} | options))


def test_each_task_is_rolled_out_in_its_environment_from_starts_that_repeat() -> None:
    world, policy = line(), Following()
    rows = evaluate(policy, world, world.sequences(6))
    assert [row["subtasks"] for row in rows] == [["right"], ["left"]] * 3
    assert [row["solved"] for row in rows] == [1] * 6
    assert [row["instructions"][0] for row in rows[:2]] == list(TASKS.values())
    assert all(2 <= row["env_steps"][0] <= 5 for row in rows)
    starts = {shade for shade, _ in policy.seen}
    assert len(starts) > 6
    again = Following()
    assert evaluate(again, line(), world.sequences(6)[::-1])[::-1] == rows
    assert sorted(again.seen) == sorted(policy.seen)
    assert {s.initial_state["seed"] for s in world.sequences(6)}.isdisjoint(
        s.initial_state["seed"] for s in world.sequences(6, seed=1)
    )
    assert world.sequences(6)[:4] == world.sequences(4)
    assert world.single_tasks(2, seed=1) == world.sequences(4, seed=1)
    assert (world.max_steps, world.control_hz) == (9, 5.0)


def test_images_are_rendered_for_policy_calls_alone_or_come_from_the_observation() -> None:
    chain = [EvalSequence(0, {"seed": 3}, ("right",))]
    rendering, observing = line(), line(image_key="pixels.top")
    first, second = Following(), Following()
    assert evaluate(first, rendering, chain) == evaluate(second, observing, chain)
    assert first.seen == second.seen
    assert rendering._env.unwrapped.rendered == len(first.seen)  # type: ignore[attr-defined]
    assert observing._env.unwrapped.rendered == 0  # type: ignore[attr-defined]


def test_an_episode_that_ends_without_success_is_not_stepped_any_further() -> None:
    world = line(arguments={"fall": True}, task_argument=None, tasks={"right": "go to the left"}, max_steps=30)
    (row,) = evaluate(Following(), world, world.sequences(1))
    assert (row["solved"], row["env_steps"]) == (0, [30])
    assert world._env.unwrapped.moved < 6  # type: ignore[attr-defined]
    by_end = line(arguments={"fall": True}, task_argument=None, tasks={"right": "go"}, success_key=None)
    assert evaluate(Following(), by_end, by_end.sequences(1))[0]["solved"] == 1


def test_actions_are_scaled_to_the_environment() -> None:
    world = line(action_scale=[2.0, 1, 1, 1, 1, 1, 1])
    world.reset(EvalSequence(0, {"seed": 3}, ("right",)))
    before = world._env.unwrapped.place  # type: ignore[attr-defined]
    world.step(np.full(7, 0.25))
    assert world._env.unwrapped.place - before == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": ""}, "give env.id=MODULE:NAME-v0"),
        ({"id": "Nothing-v0"}, "env.id=Nothing-v0 cannot be made"),
        ({"id": "no_such_module:Line-v0"}, "no_such_module:Line-v0 cannot be made"),
        ({"task_argument": "aim"}, "unexpected keyword argument 'aim'"),
        ({"arguments": {"size": 4}}, r"takes actions of Box.*\(4,\).* expected a Box of 7 numbers"),
        ({"action_scale": [1.0]}, "action_scale needs 7 numbers"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        line(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_key": "pixels.front"}, "no 'pixels.front' in the observation; found top"),
        ({"image_key": "pixels.top.left"}, "found ndarray"),
        ({"arguments": {"render_mode": None}}, r"render\(\) must be uint8 \[height, width, 3\], found object"),
        ({"success_key": "success"}, "no 'success' in its info, only is_success.*give env.success_key"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render method:UserWarning")
def test_what_an_episode_shows_to_be_wrong_is_named(options: dict[str, Any], message: str) -> None:
    world = line(**options)
    if options == {"arguments": {"render_mode": None}}:
        world._env.unwrapped.render = lambda: None  # type: ignore[method-assign]
    with pytest.raises(InputError, match=message):
        evaluate(Following(), world, world.sequences(1))


def test_a_task_that_the_benchmark_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown task 'rihgt'.*did you mean right"):
        line().instruction("rihgt")


@pytest.mark.sim
def test_our_simulator_through_gymnasium_and_the_rollouts_protocols(tmp_path: Path) -> None:
    pytest.importorskip("pybullet", reason="PyBullet is not installed (extra calvin)")
    env = {
        "_target_": "vw2_robot.envs.gymnasium_benchmark.GymnasiumBenchmark",
        "id": "vw2_robot.envs:vw2_robot/Calvin-v0",
        "tasks": {"open_drawer": "pull the handle to open the drawer", "turn_on_led": "press the button"},
        "task_argument": "task",
        "image_key": "rgb_static",
        "max_steps": 4,
    }
    world = open_benchmark(env)
    config = RolloutConfig(policy="random", env=env, run_dir=str(tmp_path), protocol="single", rollouts_per_task=1)
    rows = evaluate(RandomPolicy(), world, choose_sequences(config, world))
    assert [(row["subtasks"], row["env_steps"]) for row in rows] == [(["open_drawer"], [4]), (["turn_on_led"], [4])]
    assert world.observe()["images"]["static"].shape == (200, 200, 3)
    world.close()


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    module, script = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_package.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    # A checkpoint takes seconds to load; the random policy needs none.
    script = script.replace('VW2Agent.from_pretrained("runs/first/finetune")', "RandomPolicy()")
    names: dict[str, Any] = {"RandomPolicy": RandomPolicy}
    exec(script, names)
    del gymnasium.registry["Reach-v0"]
    assert len(names["rows"]) == 50
    _, *arguments = shlex.split(re.findall(r"^vw2-rollout .*", text, re.MULTILINE)[0])
    arguments[arguments.index("policy=runs/first/finetune")] = "policy=random"
    command = [sys.executable, "-m", "vw2_robot.rollouts", *arguments, "videos=0", "num_sequences=2"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, **options)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "mine" / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["instructions"] for row in rows] == [["reach the red block"]] * 2
