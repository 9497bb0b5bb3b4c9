from __future__ import annotations

import numpy as np
import pytest

from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.sequences import make_sequences, start_state
from vw2_robot.errors import InputError

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.fixture(scope="module")
def env() -> CalvinEnv:
    try:
        return CalvinEnv(cameras=(), renderer="egl")
    except InputError as error:
        pytest.skip(str(error))


def test_an_egl_image_depends_on_the_state_alone(env: CalvinEnv) -> None:
    robot_obs, scene_obs = start_state(make_sequences(1)[0].initial_state)
    images = []
    for _ in range(2):
        env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
        images += [env.render_camera("static") for _ in range(2)]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_egl_shows_the_same_scene_as_tiny_in_another_light(env: CalvinEnv) -> None:
    robot_obs, scene_obs = start_state(make_sequences(1)[0].initial_state)
    tiny = CalvinEnv(cameras=(), renderer="tiny")
    for either in (env, tiny):
        either.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    difference = np.abs(env.render_camera("static").astype(float) - tiny.render_camera("static")).mean()
    depths = [either.render_depth("static")[1] for either in (env, tiny)]
    tiny.close()
    assert 3 < difference < 60
    assert np.abs(depths[0] - depths[1]).mean() < 0.02


def test_a_broken_driver_is_reported_and_does_not_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent.json")
    with pytest.raises(InputError, match=r'renderer "egl" does not work on this machine'):
        CalvinEnv(cameras=(), renderer="egl")
