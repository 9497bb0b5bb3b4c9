"""CALVIN and the Gymnasium contract: its checker, registration, seeding, specs, vectors of environments, rendering."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vw2_robot.envs import CALVIN_ID
from vw2_robot.envs.calvin import RESET_MODES, CalvinEnv

pytestmark = pytest.mark.sim

ROOT = Path(__file__).parents[3]
CAMERA_SETS: list[tuple[str, ...]] = [(), ("static",), ("gripper",), ("static", "gripper")]


@pytest.mark.parametrize("cameras", CAMERA_SETS, ids=lambda cameras: "+".join(cameras) or "states")
@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_the_environment_passes_gymnasiums_own_check_without_a_warning(
    reset_mode: str, cameras: tuple[str, ...]
) -> None:
    env = gymnasium.make(CALVIN_ID, cameras=cameras, reset_mode=reset_mode, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_the_environment_passes_gymnasiums_own_check_with_a_task(reset_mode: str) -> None:
    env = gymnasium.make(CALVIN_ID, cameras=(), reset_mode=reset_mode, task="turn_on_led")
    check_env(env.unwrapped)
    env.close()


def test_the_id_with_its_module_in_front_needs_no_import() -> None:
    script = (
        "import gymnasium; env = gymnasium.make('vw2_robot.envs:vw2_robot/Calvin-v0', cameras=());"
        "print(sorted(env.reset(seed=0)[0])); env.close()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "['robot_obs', 'scene_obs']" in done.stdout


def test_a_spec_survives_pickling_and_makes_the_same_environment_again() -> None:
    env = gymnasium.make(CALVIN_ID, scene="B", cameras=("gripper",), task="open_drawer", max_episode_steps=7)
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.spec == env.spec
    assert again.observation_space == env.observation_space
    for key in ("robot_obs", "scene_obs"):
        np.testing.assert_array_equal(env.reset(seed=5)[1][key], again.reset(seed=5)[1][key])
    env.close()
    again.close()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_live_simulation_is_neither_copied_nor_pickled(duplicate: Any) -> None:
    env = CalvinEnv(cameras=())
    with pytest.raises(TypeError, match=r"neither copied nor pickled; pass on `env\.spec`"):
        duplicate(env._physics)
    env.close()


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_what_follows_a_seed_depends_on_nothing_before_it(reset_mode: str) -> None:
    env = CalvinEnv(cameras=(), reset_mode=reset_mode)
    runs = []
    for _ in range(2):
        rows = [env.reset(seed=11)[1]]
        rows += [env.step(np.array([0.5, 1, -1, 0, 0, 0.5, -1]))[-1] for _ in range(20)]
        rows += [env.reset()[1], env.step(np.zeros(7))[-1]]
        runs.append(rows)
    assert env.np_random_seed == 11
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first["robot_obs"], second["robot_obs"])
        np.testing.assert_array_equal(first["scene_obs"], second["scene_obs"])
    env.close()


def test_a_negative_seed_is_refused() -> None:
    env = CalvinEnv(cameras=())
    with pytest.raises(gymnasium.error.Error, match="Seed must be greater or equal to zero"):
        env.reset(seed=-1)
    env.close()


def _run(mode: str, cameras: tuple[str, ...], **options: Any) -> list[Any]:
    envs = gymnasium.make_vec(
        CALVIN_ID, num_envs=2, vectorization_mode=mode, vector_kwargs=options, cameras=cameras, task="open_drawer"
    )
    rng = np.random.default_rng(0)
    rows: list[Any] = [envs.reset(seed=[3, 4])]
    rows += [envs.step(rng.uniform(-1, 1, (2, 7))) for _ in range(8)]
    envs.close()
    return rows


@pytest.mark.parametrize("cameras", [(), ("static", "gripper")], ids=["states", "images"])
def test_workers_of_their_own_see_the_same_bytes_as_one_process(cameras: tuple[str, ...]) -> None:
    for here, there in zip(_run("sync", cameras), _run("async", cameras, context="spawn"), strict=True):
        assert set(here[0]) == ({f"rgb_{name}" for name in cameras} or {"robot_obs", "scene_obs"})
        for key, stacked in here[0].items():
            assert stacked.shape[0] == 2
            np.testing.assert_array_equal(stacked, there[0][key])
        for key in ("robot_obs", "scene_obs", "task", "instruction", "is_success"):
            np.testing.assert_array_equal(here[-1][key], there[-1][key])
        for returned, returned_there in zip(here[1:-1], there[1:-1], strict=True):
            np.testing.assert_array_equal(returned, returned_there)


def test_environments_of_one_vector_do_not_share_a_world() -> None:
    rows = _run("sync", ())
    first, last = rows[0][0]["scene_obs"], rows[-1][0]["robot_obs"]
    assert np.abs(first[0] - first[1]).max() > 0.01
    assert np.abs(last[0] - last[1]).max() > 0.01


def test_rendering_gives_the_static_image_whatever_is_observed() -> None:
    env = gymnasium.make(CALVIN_ID, cameras=("gripper",), render_mode="rgb_array")
    env.reset(seed=0)
    image: Any = env.render()
    assert (image.shape, image.dtype) == ((200, 200, 3), np.uint8)
    np.testing.assert_array_equal(image, env.unwrapped.render_camera("static"))  # type: ignore[attr-defined]
    assert env.metadata["render_fps"] == 30
    env.close()


def test_rendering_without_a_mode_warns_and_gives_nothing() -> None:
    env = CalvinEnv(cameras=())
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode="):
        assert env.render() is None
    env.close()


def test_observation_and_info_are_separate_copies() -> None:
    env = CalvinEnv(cameras=())
    obs, info = env.reset(seed=0)
    before = info["robot_obs"].copy()
    obs["robot_obs"][:] = 9
    info["robot_info"]["tcp_pos"][:] = 9
    np.testing.assert_array_equal(info["robot_obs"], before)
    np.testing.assert_array_equal(env.robot_obs(), before)
    env.close()
