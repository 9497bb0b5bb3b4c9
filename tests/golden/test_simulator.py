"""The simulator repeats the recordings of the reference: states, tasks and pictures (conformance levels L3 and L4).

On the build that made the recordings (PyBullet 3.2.7, Linux x86-64) to the bit; on another build to 1e-6 over the first
rows, with the same tasks at the end and pictures within two grey levels.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.oracle import TaskOracle

pytestmark = pytest.mark.sim

Recording = dict[str, NDArray[Any]]

TRAJECTORIES = (
    "A_lift_rotate", "A_random", "B_random", "B_slide_switch_button", "C_absolute_pick", "C_button_push",
    "D_default_start", "D_drawer_button", "D_joint_rel", "D_lift_place_drawer", "D_random_eval", "D_slide_switch",
    "D_stack_unstack",
)  # fmt: skip
ACTION_TYPES = {"relative": "cartesian_rel", "absolute": "cartesian_abs", "joint_rel": "joint_rel"}
ROWS_BEFORE_CONTACT = 5


def same_build() -> bool:
    is_linux = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return is_linux and importlib.metadata.version("pybullet") == "3.2.7"


def load(folder: Path, name: str) -> Recording:
    with np.load(folder / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def make(recording: Recording, assets: Path, **options: Any) -> CalvinEnv:
    return CalvinEnv(scene=str(recording["scene"]), assets=assets, cameras=(), **options)


def start(env: CalvinEnv, recording: Recording) -> None:
    env.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"])


def replay(env: CalvinEnv, recording: Recording) -> Iterator[int]:
    """Reset, then play the actions; yields the recorded row in which the world then is."""
    start(env, recording)
    yield 0
    kind = ACTION_TYPES[str(recording["action_kind"])]
    for row, action in enumerate(recording["actions"], 1):
        env.step_physics({"type": kind, "action": action})
        yield row


def states(env: CalvinEnv, recording: Recording) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [(env.robot_obs(), env.scene_obs()) for _ in replay(env, recording)]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def assert_same_states(found: NDArray[np.float64], recorded: NDArray[np.float64]) -> None:
    if same_build():
        np.testing.assert_array_equal(found, recorded)
    else:
        np.testing.assert_allclose(found[:ROWS_BEFORE_CONTACT], recorded[:ROWS_BEFORE_CONTACT], rtol=0, atol=1e-6)


def assert_same_picture(found: NDArray[np.uint8], recorded: NDArray[np.uint8]) -> None:
    if same_build():
        np.testing.assert_array_equal(found, recorded)
    else:
        assert np.abs(found.astype(float) - recorded).mean() < 2


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_recorded_actions_give_the_recorded_states_and_tasks(
    name: str, golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, name)
    env = make(recording, reference_assets)
    assert [f"{block}" for block in env.scene_order] == recording["block_order"].tolist()
    oracle = TaskOracle()
    marks: dict[int, dict[str, Any]] = {}
    robot_obs, scene_obs, logical = [], [], []
    tasks = np.zeros_like(recording["tasks"])
    for row in replay(env, recording):
        info = env.task_info()
        robot_obs.append(env.robot_obs())
        scene_obs.append(env.scene_obs())
        devices = info["scene_info"]["buttons"] | info["scene_info"]["switches"]
        logical.append([device["logical_state"] for device in devices.values()])
        if row in recording["mark_steps"]:
            marks[row] = info
        for mark, before in enumerate(marks.values()):
            for task in oracle.get_task_info(before, info):
                tasks[mark, row, oracle.task_to_id[task]] = True
    env.close()
    assert_same_states(np.array(robot_obs), recording["robot_obs"])
    assert_same_states(np.array(scene_obs), recording["scene_obs"])
    np.testing.assert_array_equal(tasks[:, -1], recording["tasks"][:, -1])
    if same_build():
        np.testing.assert_array_equal(tasks, recording["tasks"])
        np.testing.assert_array_equal(logical, recording["logical"])


def test_an_exact_reset_forgets_what_happened_before(golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, "D_lift_place_drawer")
    env = make(recording, reference_assets)
    first = states(env, recording)
    env.reset(seed=5)
    for _ in range(20):
        env.step_physics(np.array([1.0, 1, -1, 0, 0, 1, -1]))
    second = states(env, recording)
    env.close()
    for found, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(again, found)
    assert_same_states(second[0], recording["robot_obs"])
    assert_same_states(second[1], recording["scene_obs"])


def test_two_environments_in_one_process_do_not_feel_each_other(golden_dir: Path, reference_assets: Path) -> None:
    recordings = [load(golden_dir, name) for name in ("D_random_eval", "A_lift_rotate")]
    envs = [make(recording, reference_assets) for recording in recordings]
    for rows in zip(*(replay(env, recording) for env, recording in zip(envs, recordings, strict=True)), strict=False):
        for row, env, recording in zip(rows, envs, recordings, strict=True):
            if same_build() or row < ROWS_BEFORE_CONTACT:
                np.testing.assert_allclose(env.robot_obs(), recording["robot_obs"][row], rtol=0, atol=1e-6)
                np.testing.assert_allclose(env.scene_obs(), recording["scene_obs"][row], rtol=0, atol=1e-6)
    envs[0].close()
    assert_same_states(envs[1].robot_obs()[None], recordings[1]["robot_obs"][rows[1]][None])
    envs[1].close()


def test_a_legacy_reset_leaves_behind_what_the_reference_leaves_behind(
    golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, "D_legacy_reset")
    env = make(recording, reference_assets, reset_mode="legacy")
    rows = []
    for step, action in enumerate(recording["actions"]):
        if step in (0, *recording["reset_before_step"]):
            start(env, recording)
            rows.append((env.robot_obs(), env.scene_obs()))
        env.step_physics(action)
        rows.append((env.robot_obs(), env.scene_obs()))
    env.close()
    assert_same_states(np.array([row[0] for row in rows]), recording["robot_obs"])
    assert_same_states(np.array([row[1] for row in rows]), recording["scene_obs"])


@pytest.mark.parametrize("number", range(4))
def test_default_resets_place_the_blocks_as_recorded(number: int, golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, "default_resets")
    env = CalvinEnv(scene=str(recording["scenes"][number]), assets=reference_assets, cameras=(), reset_mode="legacy")
    for reset in range(6):
        _, info = env.reset(seed=0 if reset == 0 else None)
        for key in ("robot_obs", "scene_obs"):
            assert_same_states(info[key][None], recording[f"default_reset_{key}"][number, reset][None])
    env.close()


def test_a_benchmark_step_says_done_in_the_recorded_row(golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, "D_drawer_button")
    task = "open_drawer"
    done = recording["tasks"][0, :, recording["task_names"].tolist().index(task)]
    benchmark = CalvinBenchmark(assets=str(reference_assets))
    start(benchmark.env, recording)
    benchmark.begin(task)
    said = [benchmark.step(action) for action in recording["actions"][: int(done.argmax())]]
    benchmark.close()
    assert said == [False] * (len(said) - 1) + [True]


@pytest.mark.parametrize(
    "name",
    [
        "D_drawer_button",
        *(pytest.param(name, marks=pytest.mark.slow) for name in TRAJECTORIES if name != "D_drawer_button"),
    ],
)
def test_pictures_on_the_way_are_the_recorded_ones(name: str, golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, name)
    env = make(recording, reference_assets)
    shown = 0
    for row in replay(env, recording):
        if row not in recording["rgb_steps"]:
            continue
        rgb, depth = env.render_depth("static")
        assert_same_picture(rgb, recording["rgb_static"][shown])
        assert_same_picture(env.render_camera("gripper"), recording["rgb_gripper"][shown])
        if shown == 0:
            np.testing.assert_allclose(depth, recording["depth_static_first"], rtol=0, atol=0 if same_build() else 1e-2)
        shown += 1
    env.close()
    assert shown == len(recording["rgb_steps"])


@pytest.mark.parametrize("number", range(4))
def test_each_scene_looks_as_recorded(number: int, golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, "renderers")
    env = CalvinEnv(scene=str(recording["scenes"][number]), assets=reference_assets, cameras=())
    env.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"][number])
    for camera in ("static", "gripper"):
        rgb, depth = env.render_depth(camera)
        assert_same_picture(rgb, recording[f"tiny_rgb_{camera}"][number])
        tolerance = 0 if same_build() else 1e-2
        np.testing.assert_allclose(depth, recording[f"tiny_depth_{camera}"][number], rtol=0, atol=tolerance)
    env.close()
