"""Scenes of frames: right tables, the published wrong ones, and tables that do not fit."""

import logging

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.sources.calvin_scenes import PUBLISHED, SceneRanges
from vw2_robot.errors import InputError


def table(tmp_path, content, *, is_validation=False):
    path = tmp_path / "scene_info.npy"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return SceneRanges(path, is_validation=is_validation)


def test_a_right_table_is_believed(tmp_path, caplog):
    scenes = table(tmp_path, {"calvin_scene_B": [0, 9], "calvin_scene_C": [10, 19]})
    assert [scenes.scene_of(frame) for frame in (0, 9, 10, 19)] == ["B", "B", "C", "C"]
    scenes.warn_about([0, 9, 10, 19])
    assert caplog.records == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_corrected_published_tables_pass_in_silence(tmp_path, caplog, name):
    scenes = table(tmp_path, {f"calvin_scene_{scene}": [first, last] for scene, first, last in PUBLISHED[name]})
    assert all(scenes.scene_of(first) == scene for scene, first, _ in PUBLISHED[name])
    assert caplog.records == []


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ({"calvin_scene_A": [0, 611098]}, "task_D_D"),
        (
            {
                "calvin_scene_A": [0, 611098],
                "calvin_scene_B": [611099, 1210008],
                "calvin_scene_C": [1210009, 1802437],
                "calvin_scene_D": [1802438, 2406143],
            },
            "task_ABCD_D",
        ),
    ],
)
def test_the_old_published_tables_are_put_right(tmp_path, caplog, old, name):
    with caplog.at_level(logging.WARNING):
        scenes = table(tmp_path, old)
    assert name in caplog.text
    for scene, first, last in PUBLISHED[name]:
        assert scenes.scene_of(first) == scenes.scene_of(last) == scene


def test_frames_in_no_range_or_in_two_are_unknown_and_said_once(tmp_path, caplog):
    scenes = table(tmp_path, {"calvin_scene_A": [0, 50], "calvin_scene_B": [40, 99]})
    assert [scenes.scene_of(frame) for frame in (39, 45, 60, 100)] == ["A", "unknown", "B", "unknown"]
    scenes.warn_about([39, 45, 60, 100])
    assert len(caplog.records) == 1
    assert "2 of 4 trajectories, the first at frame 45" in caplog.text


def test_without_a_table_validation_is_scene_d_and_training_unknown(tmp_path):
    missing = tmp_path / "scene_info.npy"
    assert SceneRanges(missing, is_validation=True).scene_of(3) == "D"
    assert SceneRanges(missing, is_validation=False).scene_of(3) == "unknown"


@pytest.mark.parametrize("content", [[1, 2], {"calvin_scene_A": 3}, {"calvin_scene_A": ["x", "y"]}])
def test_a_table_of_something_else_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"scene_info\.npy: expected"):
        table(tmp_path, content)


def test_a_data_set_with_a_wrong_table_opens_with_one_warning(tmp_path, caplog):
    writer = CalvinWriter(tmp_path)
    for first in (0, 10, 20):
        arrays = {
            "rgb_static": np.zeros((2, 4, 4, 3), np.uint8), "actions": np.zeros((2, 7)),
            "rel_actions": np.zeros((2, 7)), "robot_obs": np.zeros((2, 15)), "scene_obs": np.zeros((2, 24)),
        }  # fmt: skip
        writer.write_episode(arrays, first_frame=first, task="open_drawer", instruction="pull", scene="C")
    writer.finish()
    assert [t.scene for t in CalvinDataset(tmp_path).trajectories] == ["C", "C", "C"]
    (tmp_path / "training" / "manifest.json").unlink()  # as in data sets of others
    np.save(tmp_path / "training" / "scene_info.npy", np.array({"calvin_scene_C": [0, 5]}, object), allow_pickle=True)
    assert [t.scene for t in CalvinDataset(tmp_path).trajectories] == ["C", "unknown", "unknown"]
    assert len(caplog.records) == 1
