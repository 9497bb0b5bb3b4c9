"""Invalid input is refused with a helpful message, and the environment works afterwards as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from vw2_robot.envs.calvin import RESET_MODES, CalvinEnv
from vw2_robot.envs.physics import Physics
from vw2_robot.errors import InputError

pybullet = pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim

STILL = [0, 0, 0, 0, 0, 0, 1]
LIGHTS_AT_7 = [0.0] * 4 + [7.0] + [0.0] * 19


@pytest.fixture(scope="module")
def env() -> Iterator[CalvinEnv]:
    env = CalvinEnv(cameras=(), reset_mode="legacy")
    env.reset(seed=0)
    yield env
    env.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scene": "d"}, r"unknown scene 'd'; known: A, B, C, D \(did you mean D\?\)"),
        ({"scene": None}, "unknown scene None; known: A, B, C, D"),
        ({"scene": ["D"]}, r"unknown scene \['D'\]; known"),
        ({"renderer": "Tiny"}, r"unknown renderer 'Tiny'; known: tiny, layered, egl \(did you mean tiny\?\)"),
        ({"cameras": ("grippr",)}, r"unknown camera 'grippr'; known: static, gripper \(did you mean gripper\?\)"),
        ({"cameras": None}, r"cameras: expected some of static, gripper, or \(\) for none, found None"),
        ({"cameras": 2}, "cameras: expected some of static, gripper"),
        ({"reset_mode": "exakt"}, r"unknown reset_mode 'exakt'; known: exact, legacy \(did you mean exact\?\)"),
        ({"render_mode": "human"}, "unknown render_mode 'human'; known: rgb_array"),
        ({"assets": None}, 'assets: expected a directory, found None; give "builtin" or a directory'),
        ({"assets": "no/such/folder"}, 'no/such/folder is no directory; give "builtin" or a directory laid out like'),
    ],
)
def test_a_wrong_choice_is_named_with_what_there_is(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        CalvinEnv(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([1, 2], r"reset: options must be a dict with any of robot_obs, scene_obs, task, found \[1, 2\]"),
        ("open_drawer", "reset: options must be a dict"),
        ({"robot": 1, "seed": 2}, r"reset: unknown option.s. robot, seed; known: robot_obs, scene_obs, task"),
        ({3: 1}, "reset: unknown option.s. 3; known"),
        ({"robot_obs": np.zeros(14)}, r"robot_obs must be 15 finite numbers, received shape \(14,\)"),
        ({"robot_obs": {"tcp": 1}}, "robot_obs must be 15 numbers, received {'tcp': 1}"),
        ({"scene_obs": np.zeros((1, 24))}, r"scene_obs must be 24 finite numbers, received shape \(1, 24\)"),
        ({"scene_obs": np.full(24, np.inf)}, "scene_obs must be 24 finite numbers"),
        ({"scene_obs": [None] * 24}, "scene_obs must be 24 finite numbers"),
        ({"scene_obs": ["open"] * 24}, "scene_obs must be 24 numbers"),
        ({"robot_obs": np.full(15, 1e300)}, "robot_obs is in meters and radians, none above 1000"),
        (
            {"scene_obs": LIGHTS_AT_7},
            r"entries 4 and 5 of scene_obs, bulb and LED, must be 0 .off. or 1 .on., received",
        ),
    ],
)
def test_wrong_options_of_a_reset_are_refused(env: CalvinEnv, options: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        env.reset(options=options)


def absolute(position: Any, orientation: Any, gripper: Any = 1) -> dict[str, Any]:
    return {"type": "cartesian_abs", "action": (position, orientation, gripper)}


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.zeros(8), r"cartesian_rel action: expected 7 numbers in one row, received shape \(8,\).*joint_abs"),
        (np.zeros((2, 7)), r"expected 7 numbers in one row, received shape \(2, 7\) \(a batch\?"),
        ([], r"expected 7 numbers in one row, received shape \(0,\)"),
        (None, "cartesian_rel action: expected finite numbers|expected 7 numbers"),
        ([0, 0, 0, 0, 0, np.nan, 1], "expected finite numbers, received .*nan.*Nothing has moved"),
        ([0, np.inf, 0, 0, 0, 0, 1], "expected finite numbers, received .*inf"),
        ([0, 0, 0, 0, 0, 0, np.nan], "expected finite numbers"),
        (["up"] * 7, "cartesian_rel action: expected numbers, received"),
        (
            {"type": "cartesian_rel", "action": [0] * 6 + [0.3]},
            "gripper .* must be 1 .open. or -1 .close., received 0.3",
        ),
        ({"type": "joint_abs", "action": [0] * 7 + [0.3]}, "joint_abs action: the gripper .* received 0.3; round it"),
        (((0, 0, 0.5), (3.1, 0, 1.5), 0.3), "cartesian_abs action: the gripper .* received 0.3"),
        (((0, 0, np.nan), (3.1, 0, 1.5), 1), "absolute action: expected finite numbers"),
        (((0, 0, 0.5), (3.1, 0), 1), r"3 Euler angles or 4 quaternion, 1 gripper. numbers, received \(3, 2, 1\)"),
        (
            {"type": "joint_rel", "action": [0] * 7},
            r"joint_rel action: expected 8 numbers .* \(7 arm joints, 1 gripper\)",
        ),
        ({"type": ["joint_rel"], "action": [0] * 8}, r"unknown action type \['joint_rel'\]; known: cartesian_rel"),
        ({"type": "joint_rel"}, r"the keys \"type\" and \"action\", received \['type'\]"),
        (absolute((0, 0, 0.5), (0, 0, 0, 0)), "no pose of the tool: .* a quaternion of length 1"),
        (absolute((1e308, 1e308, 1e308), (3.1, 0, 1.5)), "no pose of the tool"),
        (absolute((0, 0, 0.5), (1e200, 0, 0, 0)), "no pose of the tool"),
    ],
)
def test_a_wrong_action_is_refused_and_moves_nothing(env: CalvinEnv, action: Any, says: str) -> None:
    env.reset(seed=0)
    before, target = env.robot_obs(), env.robot.target_pose()
    with pytest.raises(InputError, match=says):
        env.step(action)
    np.testing.assert_array_equal(env.robot_obs(), before)
    np.testing.assert_array_equal(env.robot.target_pose(), target)
    env.step(STILL)


def test_a_plain_array_may_hold_any_gripper(env: CalvinEnv) -> None:
    env.reset(seed=0)
    for given, meant in [(0.3, 1), (-0.3, -1), (0.0, -1), (12.0, 1)]:
        env.step([0, 0, 0, 0, 0, 0, given])
        assert env.robot_obs()[14] == meant


def test_a_target_that_ran_away_beyond_numbers_is_refused_instead_of_hanging(env: CalvinEnv) -> None:
    env.reset(seed=0)
    env.step_physics([4e7, 0, 0, 0, 0, 0, 1])
    with pytest.raises(InputError, match="no pose of the tool: position"):
        env.step_physics([4e7, 0, 0, 0, 0, 0, 1])
    env.reset(seed=0)
    env.step(STILL)


USES: dict[str, Callable[[CalvinEnv], Any]] = {
    "step": lambda env: env.step(STILL),
    "step_physics": lambda env: env.step_physics(STILL),
    "render": lambda env: env.render(),
    "begin_task": lambda env: env.begin_task("open_drawer"),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_goes_before_the_first_reset(use: str) -> None:
    env = CalvinEnv(cameras=(), render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        USES[use](env)
    env.reset(seed=0)
    USES[use](env)
    env.close()


@pytest.mark.parametrize("use", [*USES, "reset", "render_camera", "robot_obs", "scene_obs", "task_info"])
def test_nothing_goes_after_close(use: str) -> None:
    env = CalvinEnv(cameras=(), render_mode="rgb_array")
    env.reset(seed=0)
    env.close()
    env.close()
    more: dict[str, Callable[[CalvinEnv], Any]] = {
        "reset": lambda env: env.reset(seed=0),
        "render_camera": lambda env: env.render_camera("static"),
        "robot_obs": lambda env: env.robot_obs(),
        "scene_obs": lambda env: env.scene_obs(),
        "task_info": lambda env: env.task_info(),
    }
    with pytest.raises(ClosedEnvironmentError, match=r"closed; make a new (one|environment)"):
        {**USES, **more}[use](env)


def test_a_file_that_pybullet_cannot_load_is_named(tmp_path: Path) -> None:
    file = tmp_path / "box.urdf"
    file.write_text("<robot/>")
    physics = Physics()
    with pytest.raises(InputError, match=r"PyBullet cannot load .*box\.urdf .*Restore the file"):
        physics.loadURDF(str(file))
    physics.close()


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_a_world_that_could_not_be_rebuilt_is_rebuilt_by_the_next_reset(
    reset_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = CalvinEnv(cameras=(), reset_mode=reset_mode)
    expected = env.reset(seed=0)[1]["scene_obs"]

    def fail(*args: Any, **options: Any) -> None:
        raise pybullet.error("Cannot load URDF file.")

    with monkeypatch.context() as patch:
        patch.setattr(pybullet, "loadURDF", fail)
        with pytest.raises(InputError, match="PyBullet cannot load"):
            env.reset(seed=0)
        with pytest.raises(ResetNeeded):
            env.step(STILL)
    env.reset()
    np.testing.assert_array_equal(env.reset(seed=0)[1]["scene_obs"], expected)
    env.close()
