"""Ways: each task has them, and where a task forks the first actions of its two routes lead apart."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pybullet")

from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import SKILLS, Demonstrator, observe_world
from vw2_robot.envs.experts.start_states import TASK_GROUPS, go_to_start
from vw2_robot.envs.experts.ways import FORKS, SPEEDS, Way, choose_way, routes
from vw2_robot.envs.oracle import TaskOracle

pytestmark = pytest.mark.sim

ONE_SECOND = 30
YAW_M = 0.06  # half the gripper's width: a rotation counts as the way of a finger


@pytest.fixture(scope="module")
def env():
    made = CalvinEnv(cameras=(), reset_mode="exact")
    yield made
    made.close()


def paths(env, start, task, route):
    """The tool's way [2, 30, 4] in the first second, for two generators."""
    made = []
    for seed in range(2):
        start.restore(env)
        expert = Demonstrator()
        expert.start(task, env, np.random.default_rng(seed), way=Way(route, "fast"))
        poses = [env.robot_obs()[[0, 1, 2, 5]]]
        for _ in range(ONE_SECOND):
            env.step_physics(expert.act(env))
            poses.append(env.robot_obs()[[0, 1, 2, 5]])
        path = np.array(poses)
        path[:, 3] = YAW_M * np.unwrap(path[:, 3])
        made.append(path[1:] - path[0])
    return np.array(made)


@pytest.mark.parametrize("task", ["push_red_block_right", "push_into_drawer", "lift_pink_block_table"])
def test_at_a_fork_the_mean_of_the_first_second_is_far_from_every_way(env, task):
    start = go_to_start(env, task, TaskOracle(), np.random.default_rng(0), at_fork=True)
    assert routes(task, observe_world(env)) == FORKS[task]
    one, other = (paths(env, start, task, route) for route in FORKS[task])
    middle = (one.mean(axis=0) + other.mean(axis=0)) / 2

    def distance(path, mean):
        return float(np.linalg.norm(path - mean, axis=-1).max())

    apart = min(distance(path, middle) for path in (*one, *other))
    spread = max(distance(path, group.mean(axis=0)) for group in (one, other) for path in group)
    assert apart > 0.06
    assert apart > 3 * spread
    # Not only a longer and a shorter path: somewhere the two lead into opposite directions.
    moved = np.array([one.mean(axis=0), other.mean(axis=0)])
    cosine = np.sum(moved[0] * moved[1], axis=-1) / np.linalg.norm(moved, axis=-1).prod(axis=0)
    assert cosine[3:].min() < -0.5


def test_a_route_is_chosen_among_those_that_the_state_leaves_open(env):
    go_to_start(env, "push_red_block_right", TaskOracle(), np.random.default_rng(1))
    world, rng = observe_world(env), np.random.default_rng(0)
    assert set(FORKS) < set(SKILLS)
    for task in TASK_GROUPS["basic"]:
        chosen = {choose_way(task, world, rng) for _ in range(40)}
        assert chosen == {Way(route, speed) for route in routes(task, world) for speed in SPEEDS}
    assert routes("stack_block", world) == ("only",)  # nothing is held, no choice of places


def test_a_slow_way_moves_slower_than_a_fast_one(env):
    start = go_to_start(env, "open_drawer", TaskOracle(), np.random.default_rng(2))
    moved = {}
    for speed in SPEEDS:
        start.restore(env)
        expert = Demonstrator()
        expert.start("open_drawer", env, np.random.default_rng(0), way=Way("left", speed))
        moved[speed] = np.linalg.norm(expert.act(env)[:3])  # far from its goal, at full speed
    assert moved["slow"] < 0.85 * moved["fast"]
