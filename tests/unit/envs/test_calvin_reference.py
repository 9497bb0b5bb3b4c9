"""The original simulator with the methods of our benchmark. Skipped in part where `calvin_env` is missing."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from vw2_robot.contracts import Benchmark
from vw2_robot.envs import calvin_reference
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.calvin_reference import CalvinReference, ReferenceWorld, find_checkout
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.physics import Physics, pybullet_version
from vw2_robot.errors import InputError, MissingExtraError

pytestmark = pytest.mark.sim

CONFIG = Path(__file__).parents[3] / "configs/env/calvin_reference.yaml"
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])
ACTION_TYPES = {"relative": "cartesian_rel", "absolute": "cartesian_abs", "joint_rel": "joint_rel"}
IMAGE_EVERY = 10

needs_original = pytest.mark.skipif(
    importlib.util.find_spec("calvin_env") is None,
    reason="calvin_env, the original simulator, is not installed (see vw2_robot/envs/calvin_reference.py)",
)


# Without the original: what a user is told.


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An import path on which `calvin_env` is what the test puts into this folder, and nothing else."""
    others = [entry for entry in sys.path if not (Path(entry) / "calvin_env").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    finders = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
    monkeypatch.setattr(sys, "meta_path", finders)
    before = forget_original()
    yield tmp_path
    forget_original()
    sys.modules.update(before)


def test_a_missing_original_is_reported_with_the_way_to_install_it(elsewhere: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"calvin_env is not installed; git clone .* checkout 797142c"):
        CalvinReference()


def test_a_checkout_seen_from_the_directory_above_is_not_taken_for_the_package(elsewhere: Path) -> None:
    (elsewhere / "calvin_env/conf").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a folder on the import path .* the directory above it"):
        find_checkout()


def test_a_package_without_its_assets_is_refused(elsewhere: Path) -> None:
    make_package(elsewhere, "")
    with pytest.raises(InputError, match=r"without its conf and data: it works only from a checkout"):
        find_checkout()


def test_a_package_that_misses_others_is_reported_too(elsewhere: Path) -> None:
    make_package(elsewhere, "import a_package_nobody_has\n", "conf", "data")
    with pytest.raises(MissingExtraError, match=r"No module named 'a_package_nobody_has'.*pip install .*gitpython"):
        ReferenceWorld()


def forget_original() -> dict[str, ModuleType]:
    """Take every module of `calvin_env` out of Python's memory; returns them."""
    names = [name for name in sys.modules if name.split(".")[0] == "calvin_env"]
    return {name: sys.modules.pop(name) for name in names}


def make_package(folder: Path, module: str, *siblings: str) -> None:
    (folder / "calvin_env/envs").mkdir(parents=True)
    for package in ("calvin_env", "calvin_env/envs"):
        (folder / package / "__init__.py").touch()
    (folder / "calvin_env/envs/play_table_env.py").write_text(module)
    for name in siblings:
        (folder / name).mkdir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "E"}, "unknown scene 'E'; known: A, B, C, D"),
        ({"renderer": "blender"}, "unknown renderer 'blender'; known: tiny, egl"),
        ({"max_steps": 0}, "max_steps must be at least 1, found 0"),
    ],
)
def test_options_are_checked_first(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CalvinReference(**options)


# With the original.


@pytest.fixture
def reference() -> Iterator[CalvinReference]:
    made = CalvinReference()
    yield made
    made.close()


def load(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(folder / "calvin/golden" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def is_recording_build() -> bool:
    return (platform.system(), platform.machine(), version("pybullet")) == ("Linux", "x86_64", "3.2.7")


@needs_original
def test_the_config_builds_it_and_says_what_it_is() -> None:
    options = yaml.safe_load(CONFIG.read_text())
    assert options.pop("_target_") == f"{CalvinReference.__module__}.{CalvinReference.__qualname__}"
    made = CalvinReference(**options)
    built: Benchmark = made
    assert (built.max_steps, built.control_hz) == (360, 30)
    assert built.metadata["simulator"].startswith("calvin_env ")
    assert len(built.metadata["simulator"].split()[1]) == 40  # a commit
    assert {key: built.metadata[key] for key in ("scene", "renderer", "reset_mode")} == {
        "scene": "D",
        "renderer": "tiny",
        "reset_mode": "legacy",
    }
    assert set(built.metadata["versions"]) == {"vw2_robot", *pybullet_version(), "gym", "numpy", "scipy"}
    built.close()
    built.close()


@needs_original
@pytest.mark.parametrize(
    "name",
    [
        "D_lift_place_drawer",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("A_lift_rotate", "B_slide_switch_button", "C_absolute_pick", "D_joint_rel", "D_stack_unstack")
        ),
    ],
)
def test_the_original_and_ours_give_the_same_bits_and_results(name: str, shared_dir: Path) -> None:
    recording = load(shared_dir, name)
    scene, task = str(recording["scene"]), "open_drawer"
    reference = CalvinReference(scene=scene)
    ours = CalvinBenchmark(scene=scene, assets=str(find_checkout() / "data"), renderer="tiny")
    for world in (reference.env, ours.env):
        world.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"])
    happened = recording["tasks"][0].any(axis=0)
    if happened.any():
        task = str(recording["task_names"][happened.argmax()])
    reference.begin(task)
    ours.begin(task)
    starts = reference.env.task_info(), ours.env.task_info()
    kind = ACTION_TYPES[str(recording["action_kind"])]
    results = []
    for row, values in enumerate(recording["actions"], 1):
        action: Any = {"type": kind, "action": values}
        results.append((reference.step(action), ours.step(action)))
        np.testing.assert_array_equal(reference.env.robot_obs(), ours.env.robot_obs())
        np.testing.assert_array_equal(reference.env.scene_obs(), ours.env.scene_obs())
        theirs = reference._oracle.get_task_info(starts[0], reference.env.task_info())
        assert theirs == TaskOracle().get_task_info(starts[1], ours.env.task_info())
        if is_recording_build():
            np.testing.assert_array_equal(reference.env.robot_obs(), recording["robot_obs"][row])
            np.testing.assert_array_equal(reference.env.scene_obs(), recording["scene_obs"][row])
        if row % IMAGE_EVERY == 0:
            seen, rendered = (benchmark.observe()["images"]["static"] for benchmark in (reference, ours))
            assert seen.shape == (200, 200, 3)
            np.testing.assert_array_equal(seen, rendered)
    assert all(theirs == mine for theirs, mine in results)
    assert any(theirs for theirs, _ in results) == happened.any()
    reference.close()
    ours.close()


@needs_original
def test_a_second_reset_keeps_the_solver_state_as_recorded(shared_dir: Path) -> None:
    recording = load(shared_dir, "D_legacy_reset")
    world = ReferenceWorld(cameras=())
    rows = []
    for step, action in enumerate(recording["actions"]):
        if step in (0, *recording["reset_before_step"]):
            world.reset_physics(robot_obs=recording["reset_robot_obs"], scene_obs=recording["reset_scene_obs"])
            rows.append((world.robot_obs(), world.scene_obs()))
        world.step_physics(action)
        rows.append((world.robot_obs(), world.scene_obs()))
    world.close()
    if is_recording_build():
        np.testing.assert_array_equal([row[0] for row in rows], recording["robot_obs"])
        np.testing.assert_array_equal([row[1] for row in rows], recording["scene_obs"])
    again = int(recording["reset_before_step"][-1]) + 1  # the row after the second reset, one more row than steps
    assert not np.array_equal(rows[0][1], rows[again][1])


@needs_original
def test_an_observation_renders_nothing_and_is_a_copy(
    reference: CalvinReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = reference.sequences(1)[0]
    reference.reset(sequence)
    reference.begin(sequence.subtasks[0])
    reference.step(STILL)

    def refuse() -> None:
        raise AssertionError("rendered")

    for camera in reference.env.original.cameras:
        monkeypatch.setattr(camera, "render", refuse)
    image = reference.observe()["images"]["static"]
    assert (image.dtype, image.shape) == (np.uint8, (200, 200, 3))
    image[:] = 0
    assert reference.observe()["images"]["static"].any()
    with pytest.raises(InputError, match="unknown camera 'gripper'; this world was made with: static"):
        reference.env.render_camera("gripper")


@needs_original
def test_any_real_number_for_the_gripper_does_and_the_action_stays_as_it_was(reference: CalvinReference) -> None:
    reference.reset(reference.sequences(1)[0])
    reference.begin("open_drawer")
    action = np.array([0.1, 0, 0, 0, 0, 0, -0.3], np.float32)
    before = action.copy()
    reference.step(action)
    np.testing.assert_array_equal(action, before)
    assert reference.env.robot_obs()[14] == -1


@needs_original
def test_misuse_is_reported_plainly(reference: CalvinReference, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calvin_env must be the first simulation of its process"):
        ReferenceWorld()
    with pytest.raises(InputError, match="scene_obs must be 24 numbers"):
        reference.env.reset_physics(scene_obs=np.zeros(23))
    reference.reset(reference.sequences(1)[0])
    with pytest.raises(RuntimeError, match="begin"):
        reference.observe()
    with pytest.raises(InputError, match="unknown task 'fly'"):
        reference.begin("fly")
    functions = calvin_reference._import_original("utils.utils")
    (tmp_path / "calvin_env").mkdir()
    with pytest.raises(InputError, match=r"starts only from a git checkout, and .* \(InvalidGitRepositoryError"):
        calvin_reference._commit(functions, tmp_path)


@needs_original
def test_no_other_simulation_is_touched_by_a_refused_one() -> None:
    other = Physics()
    with pytest.raises(InputError, match="number 0"):
        ReferenceWorld()
    assert other.getNumBodies() == 0
    other.close()


@needs_original
def test_the_scripted_expert_drives_the_original(reference: CalvinReference) -> None:
    expert = reference.expert()
    sequence = next(s for s in reference.sequences(50) if s.initial_state["drawer"] == "closed")
    reference.reset(sequence)
    reference.begin("open_drawer")
    expert.reset(reference.instruction("open_drawer"), seed=0)
    assert any(reference.step(expert.infer(reference.observe())["actions"][0]) for _ in range(150))
