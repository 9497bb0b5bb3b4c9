"""Task mode: an instruction, a start in which it can be followed, and success in reward, termination and info."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from vw2_robot.envs import CALVIN_ID
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import Demonstrator
from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.scene import SCENES
from vw2_robot.envs.sequences import TASKS, all_initial_states, start_state
from vw2_robot.envs.task_wrapper import TaskWrapper, start_states
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
NEEDS_ANOTHER_TASK_BEFORE = {
    "lift_red_block_drawer", "lift_blue_block_drawer", "lift_pink_block_drawer",
    "place_in_slider", "place_in_drawer", "stack_block", "unstack_block",
}  # fmt: skip
SLIDE, DRAWER, BULB, LED = 0, 1, 4, 5


@pytest.fixture
def env() -> Iterator[CalvinEnv]:
    env = CalvinEnv(cameras=())
    yield env
    env.close()


def pull_drawer(env: Any, meters: float = 0.2) -> None:
    env.unwrapped.scene._set_joint("base__drawer", meters)


@pytest.mark.parametrize("way", ["make", "reset"])
def test_the_step_of_success_brings_the_reward_and_ends_the_episode(way: str) -> None:
    options: dict[str, Any] = {"task": "open_drawer"}
    env = gymnasium.make(CALVIN_ID, cameras=(), **(options if way == "make" else {}))
    _, info = env.reset(seed=0, options=options if way == "reset" else None)
    for _ in range(3):
        assert info["task"] == "open_drawer"
        assert info["instruction"] == "pull the handle to open the drawer"
        assert info["is_success"] is False
        _, reward, terminated, truncated, info = env.step(STILL)
        assert (reward, terminated, truncated) == (0.0, False, False)
    pull_drawer(env)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["is_success"] is True
    env.close()


def test_the_expert_solves_the_task_of_the_environment() -> None:
    env = gymnasium.make(CALVIN_ID, cameras=(), task="open_drawer", max_episode_steps=360)
    env.reset(seed=2)
    world, expert = env.unwrapped, Demonstrator()
    assert isinstance(world, CalvinEnv)
    expert.start("open_drawer", world, np.random.default_rng(0))
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert.act(world))
        rewards.append(float(reward))
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    env.close()


def test_only_what_happens_after_the_reset_counts(env: CalvinEnv) -> None:
    opened = next(state for state in all_initial_states() if state["drawer"] == "open")
    robot_obs, scene_obs = start_state(opened)
    options = {"robot_obs": robot_obs, "scene_obs": scene_obs, "task": "open_drawer"}
    env.reset(options=options)
    assert env.step(STILL)[-1]["is_success"] is False  # it was open before
    pull_drawer(env, 0.0)
    assert env.step(STILL)[-1]["is_success"] is False
    env.reset(options={**options, "task": "close_drawer"})
    pull_drawer(env, 0.0)
    assert env.step(STILL)[2] is True


def test_without_a_task_nothing_is_judged(env: CalvinEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("judged")

    monkeypatch.setattr(TaskOracle, "get_task_info_for_set", refuse)
    _, info = env.reset(seed=0)
    pull_drawer(env)
    _, reward, terminated, _, after = env.step(STILL)
    assert (reward, terminated) == (0.0, False)
    for moment in (info, after):
        assert set(moment) == {"robot_obs", "scene_obs", "robot_info", "scene_info"}
    assert (env.task, env.task_description) == (None, "")
    with pytest.raises(AssertionError, match="judged"):
        env.reset(options={"task": "open_drawer"})


def test_a_task_of_one_reset_is_over_with_the_next() -> None:
    env = CalvinEnv(cameras=(), task="open_drawer")
    assert (env.task, env.task_description) == ("open_drawer", "pull the handle to open the drawer")
    assert env.reset(seed=0, options={"task": "turn_on_led"})[1]["task"] == "turn_on_led"
    assert env.task_description == load_instructions("validation")["turn_on_led"][0]
    assert env.reset()[1]["task"] == "open_drawer"
    env.close()


def test_another_task_can_be_begun_where_the_last_one_ended(env: CalvinEnv) -> None:
    env.reset(seed=0, options={"task": "open_drawer"})
    pull_drawer(env)
    assert env.step(STILL)[2] is True
    info = env.begin_task("close_drawer")
    assert (info["task"], info["is_success"], env.task) == ("close_drawer", False, "close_drawer")
    assert env.step(STILL)[2] is False
    pull_drawer(env, 0.0)
    assert env.step(STILL)[1:3] == (1.0, True)
    assert "task" not in env.reset()[1]


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("task", sorted(set(TASKS) - NEEDS_ANOTHER_TASK_BEFORE))
def test_a_sampled_start_is_one_in_which_the_task_can_be_done(task: str, scene: str) -> None:
    wrapper, rng, wanted = TaskWrapper(task), np.random.default_rng(0), start_states(task)
    places = {start_state(state, scene)[1].tobytes() for state in wanted}
    assert all(wrapper.sample_start(scene, rng)[1].tobytes() in places for _ in range(20))
    assert all(TASKS[task].apply(state) is not None for state in wanted)


@pytest.mark.parametrize(
    ("task", "entry", "value"),
    [
        ("open_drawer", DRAWER, 0.0), ("close_drawer", DRAWER, 0.22), ("move_slider_left", SLIDE, 0.0),
        ("move_slider_right", SLIDE, 0.28), ("turn_on_led", LED, 0.0), ("turn_off_lightbulb", BULB, 1.0),
    ],
)  # fmt: skip
def test_a_task_starts_with_the_furniture_it_needs(env: CalvinEnv, task: str, entry: int, value: float) -> None:
    starts = [env.reset(seed=seed, options={"task": task})[1]["scene_obs"] for seed in (0, 1, 2, 0)]
    np.testing.assert_allclose([start[entry] for start in starts], value, atol=1e-6)
    np.testing.assert_array_equal(starts[0], starts[3])
    assert np.abs(starts[0] - starts[1]).max() > 0.01 or np.abs(starts[0] - starts[2]).max() > 0.01


@pytest.mark.parametrize("task", sorted(NEEDS_ANOTHER_TASK_BEFORE))
def test_a_task_that_needs_another_before_it_asks_for_a_state(env: CalvinEnv, task: str) -> None:
    says = rf"task '{task}' can be done in none of the benchmark's start states.*robot_obs and scene_obs.*begin_task"
    with pytest.raises(InputError, match=says):
        env.reset(options={"task": task})
    robot_obs, scene_obs = start_state(all_initial_states()[0])
    _, info = env.reset(options={"task": task, "robot_obs": robot_obs, "scene_obs": scene_obs})
    assert (info["task"], info["is_success"]) == (task, False)


def test_a_robot_state_alone_leaves_the_scene_to_the_task(env: CalvinEnv) -> None:
    robot_obs, _ = start_state(all_initial_states()[0])
    robot_obs[7] += 0.3
    _, info = env.reset(seed=0, options={"task": "close_drawer", "robot_obs": robot_obs})
    np.testing.assert_allclose(info["robot_obs"][7], robot_obs[7], atol=1e-3)
    assert info["scene_obs"][DRAWER] == pytest.approx(0.22, abs=1e-6)


def test_a_limit_of_steps_truncates() -> None:
    env = gymnasium.make(CALVIN_ID, cameras=(), task="open_drawer", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(STILL)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env.close()


def test_a_misspelt_task_is_refused_with_the_nearest_names(env: CalvinEnv) -> None:
    says = "unknown task 'open_drawr'; nearest: open_drawer"
    for ask in (
        lambda: CalvinEnv(cameras=(), task="open_drawr"),
        lambda: env.reset(options={"task": "open_drawr"}),
        lambda: env.reset() and env.begin_task("open_drawr"),
    ):
        with pytest.raises(InputError, match=says):
            ask()
    with pytest.raises(InputError, match=r"unknown task 7; known: rotate_red_block_right, .*, push_into_drawer"):
        env.reset(options={"task": 7})
