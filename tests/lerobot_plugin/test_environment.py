"""CALVIN's tasks as an environment of LeRobot."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("lerobot_policy_vw2", reason="needs LeRobot on Python 3.12: make test-lerobot")
pytest.importorskip("pybullet", reason="needs the extra calvin: make test-lerobot")

from lerobot.envs import env_to_policy_features, make_env, make_env_config, preprocess_observation
from lerobot_policy_vw2.environment_vw2 import CalvinTask

from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.sequences import TASKS
from vw2_robot.envs.single_tasks import single_tasks
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim


def test_all_tasks_are_there_and_no_simulator_is_built_for_them():
    config = make_env_config("vw2_calvin")
    suites = make_env(config, n_envs=2)
    assert {suite: list(tasks) for suite, tasks in suites.items()} == {"calvin": list(range(34))}
    for name, vector in zip(TASKS, suites["calvin"].values(), strict=True):
        assert vector.num_envs == 2
        assert vector.call("task") == (name, name)
        assert vector.call("_max_episode_steps") == (360, 360)
        assert all(one.unwrapped._benchmark is None for one in vector.envs)
    assert {name: tuple(f.shape) for name, f in env_to_policy_features(config).items()} == {
        "action": (7,),
        "observation.images.static": (3, 200, 200),
    }
    with pytest.raises(InputError, match=r"unknown open_dor; known: rotate_red"):
        make_env(make_env_config("vw2_calvin", task="open_drawer,open_dor"))


@pytest.mark.parametrize("task", ["open_drawer", "stack_block"])  # the second needs the expert before it can begin
def test_an_episode_begins_where_the_rollout_of_its_number_does(task):
    env = CalvinTask(task, max_steps=2)
    env.reset(seed=7)
    env.reset(options={"lerobot_new_rollout": True})  # without a seed: the next one
    (wanted,) = (one for one in single_tasks(9) if one.subtasks == (task,) and one.number % 1000 == 8)
    benchmark = CalvinBenchmark()
    benchmark.reset(wanted)
    np.testing.assert_array_equal(env.benchmark.env.scene_obs(), benchmark.env.scene_obs())
    np.testing.assert_array_equal(env.benchmark.env.robot_obs(), benchmark.env.robot_obs())
    assert env.task_description == benchmark.instruction(task)
    with pytest.raises(InputError, match="unknown option"):
        env.reset(options={"scene_obs": 1})
    env.close()
    benchmark.close()


def test_success_ends_an_episode_and_so_does_the_limit():
    env = CalvinTask("open_drawer", max_steps=200)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info == {"is_success": False}
    expert = env.benchmark.expert()
    expert.reset(env.task_description, seed=0)
    ended = False
    while not ended:
        action = expert.infer({})["actions"][0]
        _, reward, ended, truncated, info = env.step(np.asarray(action, np.float32))
        assert not truncated
    assert (reward, info) == (1.0, {"is_success": True})
    limited = CalvinTask("open_drawer", max_steps=2)
    limited.reset(seed=0)
    ends = [limited.step(np.zeros(7, np.float32))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]
    for one in (env, limited):
        one.close()


def test_images_reach_a_policy_unchanged():
    suites = make_env(make_env_config("vw2_calvin", task="open_drawer", episode_length=5), n_envs=1)
    vector = suites["calvin"][list(TASKS).index("open_drawer")]
    assert isinstance(vector, gymnasium.vector.SyncVectorEnv)
    observation, _ = vector.reset(seed=[0], options={"lerobot_new_rollout": True})
    seen = preprocess_observation(observation)
    assert list(seen) == ["observation.images.static"]
    pixels = (seen["observation.images.static"][0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, vector.envs[0].unwrapped.render())
    vector.close()
