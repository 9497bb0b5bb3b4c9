"""The simulator repeats the recordings of the reference: states, tasks and images (conformance levels L3 and L4).

On the build that made the recordings (PyBullet 3.2.7, Linux x86-64) to the bit; on another build to 1e-6 until the arm
first touches something, with the same tasks at the end and images within two gray levels. Which of the two was asked
for stands in the id of each test: `bit_exact` or `tolerance` (conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

Recording = dict[str, NDArray[Any]]

TRAJECTORIES = (
    "A_lift_rotate", "A_random", "B_random", "B_slide_switch_button", "C_absolute_pick", "C_button_push",
    "D_default_start", "D_drawer_button", "D_joint_rel", "D_lift_place_drawer", "D_random_eval", "D_slide_switch",
    "D_stack_unstack",
)  # fmt: skip
OTHER_RECORDINGS = ("D_legacy_reset", "default_resets", "renderers")
# In these, 1e-13 rad more at the start, or solving contacts in another order, changes the tasks of the last row.
TASKS_HANG_ON_ROUNDING = {"A_lift_rotate", "B_random", "D_stack_unstack"}
ACTION_TYPES = {"relative": "cartesian_rel", "absolute": "cartesian_abs", "joint_rel": "joint_rel"}


@dataclass
class Run:
    """What a replay of one recording showed."""

    recording: Recording
    robot_obs: NDArray[np.float64]
    scene_obs: NDArray[np.float64]
    logical: NDArray[np.int8]
    tasks: NDArray[np.bool_]
    images: list[dict[str, NDArray[np.uint8]]]
    depth: NDArray[np.float32]
    before_contact: int


def load(folder: Path, name: str) -> Recording:
    with np.load(folder / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def make(recording: Recording, assets: Path, **options: Any) -> CalvinEnv:
    return CalvinEnv(scene=str(recording["scene"]), assets=assets, cameras=(), renderer="tiny", **options)


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


def run(env: CalvinEnv, recording: Recording, *, images: bool = False) -> Run:
    oracle = TaskOracle()
    marks: dict[int, dict[str, Any]] = {}
    robot_obs, scene_obs, logical, shown, touched = [], [], [], [], []
    depth = np.zeros((0, 0), np.float32)
    tasks = np.zeros_like(recording["tasks"])
    for row in replay(env, recording):
        info = env.task_info()
        robot_obs.append(env.robot_obs())
        scene_obs.append(env.scene_obs())
        touched.append(bool(info["robot_info"]["contacts"]))
        devices = info["scene_info"]["buttons"] | info["scene_info"]["switches"]
        logical.append([device["logical_state"] for device in devices.values()])
        if row in recording["mark_steps"]:
            marks[row] = info
        for mark, before in enumerate(marks.values()):
            for task in oracle.get_task_info(before, info):
                tasks[mark, row, oracle.task_to_id[task]] = True
        if images and row in recording["rgb_steps"]:
            rgb, meters = env.render_depth("static")
            depth = depth if shown else meters
            shown.append({"static": rgb, "gripper": env.render_camera("gripper")})
    before_contact = touched.index(True) if any(touched) else len(touched)
    return Run(
        recording, np.array(robot_obs), np.array(scene_obs), np.array(logical), tasks, shown, depth, before_contact
    )


@pytest.fixture(scope="module")
def replayed(golden_dir: Path, reference_assets: Path) -> Callable[[str], Run]:
    """Each recorded trajectory, replayed once in a new environment."""

    @cache
    def replay_once(name: str) -> Run:
        recording = load(golden_dir, name)
        env = make(recording, reference_assets)
        assert list(env.scene_order) == recording["block_order"].tolist()
        found = run(env, recording, images=True)
        env.close()
        return found

    return replay_once


def test_no_recording_is_left_out(golden_dir: Path) -> None:
    assert {path.stem for path in golden_dir.glob("*.npz")} == {*TRAJECTORIES, *OTHER_RECORDINGS}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_recorded_actions_give_the_recorded_states(name: str, agreement: Any, replayed: Callable[[str], Run]) -> None:
    found = replayed(name)
    assert found.before_contact > 20
    agreement.states(found.robot_obs, found.scene_obs, found.recording, before_contact=found.before_contact)
    if agreement.exact:
        np.testing.assert_array_equal(found.logical, found.recording["logical"])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_recorded_actions_solve_the_recorded_tasks(name: str, agreement: Any, replayed: Callable[[str], Run]) -> None:
    found = replayed(name)
    if agreement.exact:
        np.testing.assert_array_equal(found.tasks, found.recording["tasks"])
    elif name in TASKS_HANG_ON_ROUNDING:
        pytest.skip("which tasks hold in the last row hangs on rounding errors; on another build they may differ")
    else:
        np.testing.assert_array_equal(found.tasks[:, -1], found.recording["tasks"][:, -1])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_images_on_the_way_are_the_recorded_ones(name: str, agreement: Any, replayed: Callable[[str], Run]) -> None:
    found = replayed(name)
    rows = found.recording["rgb_steps"]
    assert len(found.images) == len(rows) > 0
    agreement.depth(found.depth, found.recording["depth_static_first"])
    for number, row in enumerate(rows):
        if agreement.exact or row < found.before_contact:
            for camera, image in found.images[number].items():
                agreement.image(image, found.recording[f"rgb_{camera}"][number])


def test_the_tolerances_accept_another_order_of_rounding_and_nothing_more(
    tolerance: Any, golden_dir: Path, reference_assets: Path
) -> None:
    """Contacts solved in another order stand for another build; an arm a thousandth faster for a mistake."""
    recording = load(golden_dir, "D_drawer_button")
    env = make(recording, reference_assets)
    env._physics.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    other = run(env, recording)
    assert not np.array_equal(other.robot_obs, recording["robot_obs"])
    tolerance.states(other.robot_obs, other.scene_obs, recording, before_contact=other.before_contact)
    np.testing.assert_array_equal(other.tasks[:, -1], recording["tasks"][:, -1])
    wrong = run(env, {**recording, "actions": recording["actions"] * [*[1.001] * 6, 1]})
    env.close()
    with pytest.raises(AssertionError, match="robot_obs"):
        tolerance.states(wrong.robot_obs, wrong.scene_obs, recording, before_contact=wrong.before_contact)


def test_an_exact_reset_forgets_what_happened_before(agreement: Any, golden_dir: Path, reference_assets: Path) -> None:
    recording = load(golden_dir, "D_lift_place_drawer")
    env = make(recording, reference_assets)
    first = run(env, recording)
    env.reset(seed=5)
    for _ in range(20):
        env.step_physics(np.array([1.0, 1, -1, 0, 0, 1, -1]))
    second = run(env, recording)
    env.close()
    np.testing.assert_array_equal(second.robot_obs, first.robot_obs)
    np.testing.assert_array_equal(second.scene_obs, first.scene_obs)
    agreement.states(second.robot_obs, second.scene_obs, recording, before_contact=second.before_contact)


def test_two_environments_in_one_process_do_not_feel_each_other(
    replayed: Callable[[str], Run], reference_assets: Path
) -> None:
    alone = [replayed(name) for name in ("D_random_eval", "A_lift_rotate")]
    envs = [make(single.recording, reference_assets) for single in alone]
    rows = 0
    for pair in zip(*(replay(env, single.recording) for env, single in zip(envs, alone, strict=True)), strict=False):
        for row, env, single in zip(pair, envs, alone, strict=True):
            np.testing.assert_array_equal(env.robot_obs(), single.robot_obs[row])
            np.testing.assert_array_equal(env.scene_obs(), single.scene_obs[row])
        rows += 1
    assert rows > 150
    envs[0].close()
    envs[1].step_physics(alone[1].recording["actions"][rows - 1])
    np.testing.assert_array_equal(envs[1].robot_obs(), alone[1].robot_obs[rows])
    envs[1].close()


def test_a_legacy_reset_leaves_behind_what_the_reference_leaves_behind(
    agreement: Any, golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, "D_legacy_reset")
    env = make(recording, reference_assets, reset_mode="legacy")
    robot_obs, scene_obs, touched = [], [], []

    def note() -> None:
        robot_obs.append(env.robot_obs())
        scene_obs.append(env.scene_obs())
        touched.append(bool(env.task_info()["robot_info"]["contacts"]))

    for step, action in enumerate(recording["actions"]):
        if step in (0, *recording["reset_before_step"]):
            start(env, recording)
            note()
        env.step_physics(action)
        note()
    env.close()
    before_contact = touched.index(True) if any(touched) else len(touched)
    agreement.states(np.array(robot_obs), np.array(scene_obs), recording, before_contact=before_contact)


@pytest.mark.parametrize("number", range(4), ids=list("ABCD"))
def test_default_resets_place_the_blocks_as_recorded(
    number: int, agreement: Any, golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, "default_resets")
    env = CalvinEnv(
        scene=str(recording["scenes"][number]),
        assets=reference_assets,
        cameras=(),
        renderer="tiny",
        reset_mode="legacy",
    )
    infos = [env.reset(seed=0 if reset == 0 else None)[1] for reset in range(6)]
    env.close()
    states = {key: np.array([info[key] for info in infos]) for key in ("robot_obs", "scene_obs")}
    recorded = {key: recording[f"default_reset_{key}"][number] for key in states}
    agreement.states(**states, recording=recorded, before_contact=len(infos))


def test_a_benchmark_step_says_done_in_the_recorded_row(
    agreement: Any, golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, "D_drawer_button")
    task = "open_drawer"
    done = recording["tasks"][0, :, recording["task_names"].tolist().index(task)]
    benchmark = CalvinBenchmark(assets=str(reference_assets), renderer="tiny")
    start(benchmark.env, recording)
    benchmark.begin(task)
    row = next(row for row, action in enumerate(recording["actions"], 1) if benchmark.step(action))
    benchmark.close()
    assert abs(row - int(done.argmax())) <= (0 if agreement.exact else 10)


@pytest.mark.parametrize("number", range(4), ids=list("ABCD"))
def test_each_scene_is_rendered_as_recorded(
    number: int, agreement: Any, golden_dir: Path, reference_assets: Path
) -> None:
    recording = load(golden_dir, "renderers")
    env = CalvinEnv(scene=str(recording["scenes"][number]), assets=reference_assets, cameras=(), renderer="tiny")
    env.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"][number])
    for camera in ("static", "gripper"):
        rgb, depth = env.render_depth(camera)
        agreement.image(rgb, recording[f"tiny_rgb_{camera}"][number])
        agreement.depth(depth, recording[f"tiny_depth_{camera}"][number])
    env.close()


@pytest.mark.slow
def test_egl_is_nearer_to_the_recorded_egl_than_to_tiny(golden_dir: Path, reference_assets: Path) -> None:
    """A loose comparison, since drivers differ: another light, the same depth."""
    recording = load(golden_dir, "renderers")
    try:
        env = CalvinEnv(scene="D", assets=reference_assets, cameras=(), renderer="egl")
    except InputError as error:
        pytest.skip(str(error))
    number = recording["scenes"].tolist().index("D")
    env.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"][number])
    rgb, depth = env.render_depth("static")
    env.close()
    apart = {
        renderer: np.abs(rgb.astype(float) - recording[f"{renderer}_rgb_static"][number]).mean()
        for renderer in ("egl_mesa", "tiny")
    }
    assert apart["egl_mesa"] < apart["tiny"] / 2
    assert np.abs(depth - recording["egl_mesa_depth_static"][number]).mean() < 0.01
