from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.cameras import INTRINSICS
from vw2_robot.envs.scene import SCENES
from vw2_robot.envs.sequences import make_sequences, start_state

pytestmark = pytest.mark.sim

ROBOT_OBS, SCENE_OBS = start_state(make_sequences(1)[0].initial_state)
SLIDE, DRAWER, BUTTON, SWITCH, BULB, LED = range(6)


@pytest.fixture
def env() -> Iterator[CalvinEnv]:
    env = CalvinEnv(cameras=())
    yield env
    env.close()


@pytest.fixture
def legacy_env() -> Iterator[CalvinEnv]:
    env = CalvinEnv(cameras=(), reset_mode="legacy")
    yield env
    env.close()


def scene_obs(**changes: float) -> Any:
    state = SCENE_OBS.copy()
    state[SLIDE : LED + 1] = 0
    for name, value in changes.items():
        state[{"button": BUTTON, "switch": SWITCH, "bulb": BULB, "led": LED, "drawer": DRAWER}[name]] = value
    return state


def test_reset_and_step_return_what_the_readme_promises() -> None:
    env = gymnasium.make(
        "vw2_robot/Calvin-v0", scene="D", renderer="tiny", cameras=("static",), render_mode="rgb_array"
    )
    obs, info = env.reset(seed=0, options={"robot_obs": ROBOT_OBS, "scene_obs": SCENE_OBS})
    for _ in range(2):
        assert set(obs) == {"rgb_static"}
        assert obs["rgb_static"].shape == (200, 200, 3)
        assert obs["rgb_static"].dtype == np.uint8
        assert env.observation_space.contains(obs)
        assert (info["robot_obs"].shape, info["robot_obs"].dtype) == ((15,), np.float64)
        assert (info["scene_obs"].shape, info["scene_obs"].dtype) == ((24,), np.float64)
        obs, reward, terminated, truncated, info = env.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
        assert (reward, terminated, truncated) == (0, False, False)
    np.testing.assert_array_equal(env.render(), obs["rgb_static"])
    assert env.unwrapped.scene_order == ("block_red", "block_blue", "block_pink")  # type: ignore[attr-defined]
    env.close()


def test_without_cameras_nothing_is_rendered(env: CalvinEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(env._physics, "getCameraImage", refuse, raising=False)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.step(np.zeros(7))
    with pytest.raises(AssertionError, match="rendered"):
        env.render_camera("static")


def test_a_reset_goes_to_the_state_it_was_given(env: CalvinEnv) -> None:
    _, info = env.reset(options={"robot_obs": ROBOT_OBS, "scene_obs": SCENE_OBS})
    np.testing.assert_allclose(info["robot_obs"][:3], ROBOT_OBS[:3], atol=2e-3)
    np.testing.assert_allclose(info["robot_obs"][7:14], ROBOT_OBS[7:14], atol=1e-3)
    np.testing.assert_allclose(info["scene_obs"][:6], SCENE_OBS[:6], atol=1e-6)
    positions = [slice(first, first + 3) for first in (6, 12, 18)]
    for block in positions:
        np.testing.assert_allclose(info["scene_obs"][block], SCENE_OBS[block], atol=1e-3)


def test_robot_and_scene_can_be_reset_alone(env: CalvinEnv) -> None:
    robot_obs = ROBOT_OBS.copy()
    robot_obs[7] += 0.3
    _, info = env.reset(seed=1, options={"robot_obs": robot_obs})
    np.testing.assert_allclose(info["robot_obs"][7], robot_obs[7], atol=1e-3)
    np.testing.assert_allclose(info["scene_obs"][:6], 0, atol=1e-6)
    _, info = env.reset(options={"scene_obs": SCENE_OBS})
    np.testing.assert_allclose(info["robot_obs"][7], ROBOT_OBS[7], atol=1e-3)
    np.testing.assert_allclose(info["scene_obs"][:6], SCENE_OBS[:6], atol=1e-6)


def test_an_exact_reset_gives_the_same_bytes_whatever_happened_before(env: CalvinEnv) -> None:
    state = {"robot_obs": ROBOT_OBS, "scene_obs": SCENE_OBS}
    rows = []
    for seed in (None, 7):
        _, info = env.reset(seed=seed, options=state)
        image = env.render_camera("static")
        for _ in range(15):
            env.step_physics(np.array([0.5, 1, -1, 0, 0, 0.5, -1]))
        rows.append((info["robot_obs"], info["scene_obs"], image, env.robot_obs(), env.scene_obs()))
    for first, second in zip(*rows, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_seed_decides_where_a_default_reset_puts_the_blocks(env: CalvinEnv) -> None:
    scenes = [env.reset(seed=seed)[1]["scene_obs"] for seed in (4, 5, 4, None)]
    np.testing.assert_array_equal(scenes[0], scenes[2])
    assert np.abs(scenes[0] - scenes[1])[6:].max() > 0.01
    assert np.abs(scenes[2] - scenes[3])[6:].max() > 0.01  # no seed: the stream goes on


@pytest.mark.parametrize("scene", SCENES)
def test_default_resets_put_blocks_on_the_scenes_surfaces(scene: str) -> None:
    env = CalvinEnv(scene=scene, cameras=())
    _, info = env.reset(seed=0)
    for pose in info["scene_obs"][6:].reshape(3, 6):
        assert any(
            np.all(pose[:2] > np.array(low[:2]) - 0.01) and np.all(pose[:2] < np.array(high[:2]) + 0.01)
            for low, high in SCENES[scene].surfaces.values()
        )
    assert set(env.task_info()["scene_info"]["movable_objects"]) == set(env.scene_order)
    env.close()


@pytest.mark.parametrize("scene", SCENES)
def test_start_states_stand_still_in_every_scene(scene: str) -> None:
    env = CalvinEnv(scene=scene, cameras=())
    for number in (0, 3):
        robot_obs, state = start_state(make_sequences(4)[number].initial_state, scene)
        env.reset_physics(robot_obs=robot_obs, scene_obs=state)
        for _ in range(20):
            env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1]))
        found = env.scene_obs()
        np.testing.assert_allclose(found[:6], state[:6], atol=2e-3)
        np.testing.assert_allclose(found[6:].reshape(3, 6)[:, :3], state[6:].reshape(3, 6)[:, :3], atol=0.005)
    env.close()


def test_a_pressed_button_toggles_the_led_once_per_press(env: CalvinEnv) -> None:
    env.reset_physics(robot_obs=ROBOT_OBS, scene_obs=scene_obs(button=0.018))
    seen = []
    for _ in range(30):
        env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1]))
        seen.append(int(env.scene_obs()[LED]))
    assert seen == [seen[0]] * 30  # it springs back and is not pressed again
    assert env.scene_obs()[BUTTON] < 0.005
    env.scene.reset_to(scene_obs(button=0.02))
    env.scene.update_button_and_switch()
    assert env.scene_obs()[LED] == 1
    env.scene.update_button_and_switch()
    assert env.scene_obs()[LED] == 1


def test_the_bulb_follows_the_lever_but_not_a_reset(env: CalvinEnv) -> None:
    still = np.array([0, 0, 0, 0, 0, 0, 1])
    env.reset_physics(scene_obs=scene_obs(switch=0.088))
    assert env.scene_obs()[BULB] == 0
    env.step_physics(still)
    assert env.scene_obs()[BULB] == 1
    env.reset_physics(scene_obs=scene_obs(bulb=1))
    env.step_physics(still)
    assert env.scene_obs()[BULB] == 1  # lever down, bulb on: stays until the lever goes up and down


def test_a_default_reset_leaves_the_button_on_if_the_led_was(legacy_env: CalvinEnv) -> None:
    legacy_env.reset_physics(scene_obs=scene_obs(led=1))
    legacy_env.reset_physics()
    info = legacy_env.task_info()["scene_info"]
    assert info["lights"]["led"]["logical_state"] == 0
    assert info["buttons"]["base__button"]["logical_state"] == 1


def test_relative_actions_add_up_on_the_stored_target_and_absolute_ones_do_not(env: CalvinEnv) -> None:
    env.reset_physics(robot_obs=ROBOT_OBS, scene_obs=SCENE_OBS)
    start = env.robot_obs()[:3]
    for _ in range(5):
        env.step_physics(np.array([0, 0, 1, 0, 0, 0, 1]))
    env.step_physics((start, env.robot_obs()[3:6], 1))
    for _ in range(40):
        env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1]))
    np.testing.assert_allclose(env.robot_obs()[:3], start + np.array([0, 0, 5 * 0.02]), atol=0.005)


def test_the_gripper_closes_and_opens(env: CalvinEnv) -> None:
    env.reset_physics(robot_obs=ROBOT_OBS, scene_obs=SCENE_OBS)
    for gripper, width in [(-1, 0.0), (1, 0.08)]:
        for _ in range(30):
            env.step_physics(np.array([0, 0, 0, 0, 0, 0, gripper]))
        assert env.robot_obs()[14] == gripper
        assert env.robot_obs()[6] == pytest.approx(width, abs=0.003)


def test_close_frees_both_clients_and_may_be_called_twice() -> None:
    import pybullet

    env = CalvinEnv(cameras=())
    env.render_camera("static")  # what rests has a simulation of its own
    assert env._backdrop is not None
    assert env._backdrop._physics is not None
    clients = {env._physics._client, env._backdrop._physics._client}
    assert [pybullet.isConnected(client) for client in clients] == [True, True]
    env.close()
    env.close()
    assert not any(pybullet.isConnected(client) for client in clients)


def test_focal_lengths_are_those_of_the_published_cameras() -> None:
    assert INTRINSICS["static"].focal_px == pytest.approx(1143.0, abs=0.1)
    assert INTRINSICS["gripper"].focal_px == pytest.approx(54.73, abs=0.01)


def test_the_camera_matrices_put_the_tool_where_the_image_shows_it(env: CalvinEnv) -> None:
    env.reset_physics(robot_obs=ROBOT_OBS, scene_obs=SCENE_OBS)
    camera = env.cameras["static"]
    view, projection = (np.array(matrix).reshape(4, 4).T for matrix in (camera.view_matrix, camera.projection_matrix))
    block = SCENE_OBS[12:15]  # the blue block
    clip = projection @ view @ [*block, 1]
    column, row = (clip[:2] / clip[3] * [1, -1] + 1) / 2 * 200
    red, green, blue = env.render_camera("static")[int(row), int(column)].astype(int)
    assert blue > 2 * max(red, green)


@pytest.mark.parametrize("module", ["vw2_robot.envs", "vw2_robot.envs.oracle", "vw2_robot.envs.sequences"])
def test_pybullet_stays_out_until_an_environment_is_made(module: str) -> None:
    script = f"import sys, {module}; sys.exit('pybullet' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
