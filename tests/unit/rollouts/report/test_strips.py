"""The strip under a video: executed and predicted actions, and their codes."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.rollouts.report.strips import (
    ROW_PX,
    RecordedOutputs,
    code_image,
    executed_commands,
    plot_strip,
    read_recording,
)
from vw2_robot.storage.arrays import write_arrays


def outputs(subtask, *, chunk_size=4, tokens=None):
    """Policy call i (in the subtask `subtask[i]`) predicts dx = i + 1 tenths, all of its chunk."""
    actions = np.zeros((len(subtask), chunk_size, 7), np.float32)
    actions[..., 0] = (np.arange(len(subtask))[:, None] + 1) / 10
    return RecordedOutputs(actions, np.array(subtask), None if tokens is None else np.array(tokens))


def test_executed_is_the_first_rows_of_each_call_cut_where_the_subtask_ends():
    executed = executed_commands(outputs([0, 0, 0, 1]), [5, 1], n_action_steps=2)
    assert executed[:, 0] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.4])
    assert set(executed[:, 6]) <= {-1.0, 1.0}  # the gripper gets a sign


def test_fewer_calls_than_steps_are_refused():
    with pytest.raises(InputError, match="1 recorded policy calls of 2 steps for the 3 steps"):
        executed_commands(outputs([0, 0, 1]), [4, 3], n_action_steps=2)


def test_the_codes_over_a_step_are_those_of_the_latent_step_that_covers_it():
    tokens = [[[7, 1], [8, 1]], [[9, 1], [7, 1]]]  # 2 policy calls, 2 latent steps of 2 control steps, 2 codes
    image = code_image(outputs([0, 0], tokens=tokens), [7], n_action_steps=4)
    assert image.shape == (2, 7, 3)
    first = [tuple(pixel) for pixel in image[0]]
    assert first[0] == first[1] == first[6]  # 7 7 8 8 9 9 7
    assert len({first[0], first[2], first[4]}) == 3
    assert first[2] == first[3]
    assert len({tuple(pixel) for pixel in image[1]}) == 1


def test_codes_next_to_each_other_have_different_colors():
    tokens = np.arange(1000).reshape(1, 1000, 1)
    made = RecordedOutputs(np.zeros((1, 1000, 7), np.float32), np.array([0]), tokens)
    row = code_image(made, [1000], n_action_steps=1000)[0].astype(int)
    assert np.abs(np.diff(row, axis=0)).sum(axis=1).min() > 60


def test_the_drawing_is_as_long_as_the_chain_and_its_lines_stay_in_their_rows():
    strip = plot_strip(outputs([0, 0, 1], tokens=np.zeros((3, 1, 2), int)), [4, 2], n_action_steps=2)
    svg = ET.fromstring(strip.svg)
    assert svg.get("viewBox") == f"0 0 6 {ROW_PX * 7}"
    assert (strip.env_steps, strip.parts, strip.code_rows, len(strip.names)) == (6, [(1, 4), (2, 2)], 2, 7)
    executed_lines = [path.get("d") for path in svg if path.get("class") == "e"]
    assert len(executed_lines) == 7
    for dim, line in enumerate(executed_lines):
        start = int(re.match(r"M0 (\d+)", line)[1])
        assert ROW_PX * dim < start < ROW_PX * (dim + 1)
    assert svg.find("path[@class='s']").get("d").startswith("M4 ")  # where the first subtask ends


def test_predictions_continue_beyond_the_next_call():
    strip = plot_strip(outputs([0, 0], chunk_size=4), [4], n_action_steps=2)
    dx = next(path.get("d") for path in ET.fromstring(strip.svg) if path.get("class") == "p")
    assert [int(x) for x in re.findall(r"M(\d+)", dx)] == [0, 2]
    first, second = re.split(r"(?=M)", dx)[1:]
    points = [len(re.findall(r"-?\d+", path)) // 2 for path in (first, second)]
    assert points == [4, 2]  # the whole chunk; cut at the end of the subtask


def test_a_policy_that_predicts_one_step_has_executed_lines_alone():
    strip = plot_strip(outputs([0, 0, 0], chunk_size=1), [3], n_action_steps=1)
    lines = {(path.get("class"), bool(path.get("d"))) for path in ET.fromstring(strip.svg)}
    assert strip.chunk_size == 1
    assert ("p", True) not in lines
    assert ("e", True) in lines


@pytest.mark.parametrize(
    "arrays",
    [
        {"actions": np.zeros((2, 4, 7))},
        {"actions": np.zeros((2, 4, 6)), "subtask": np.zeros(2)},
        {"actions": np.zeros((2, 4, 7)), "subtask": np.zeros(3)},
        {"actions": np.zeros((0, 4, 7)), "subtask": np.zeros(0)},
        {"actions": np.zeros((2, 4, 7)), "subtask": np.zeros(2), "tokens": np.zeros((1, 1, 1))},
    ],
)
def test_a_file_with_something_else_is_named(tmp_path, arrays):
    np.savez(tmp_path / "chain_0001.npz", **arrays)
    with pytest.raises(InputError, match=r"chain_0001\.npz"):
        read_recording(tmp_path / "chain_0001.npz")


def test_an_incomplete_file_is_named(tmp_path):
    file = tmp_path / "chain_0001.npz"
    file.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match=r"chain_0001\.npz cannot be read, it is damaged"):
        read_recording(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": np.zeros((2, 4, 6), np.float32)},
        {"actions": np.full((2, 4, 7), np.nan, np.float32)},
        {"subtask": np.zeros(3, np.int64)},
        {"tokens": np.zeros((2, 4), np.int64)},
        {"tokens": np.zeros((2, 4, 0), np.int64)},
        {"subtask": np.zeros(0, np.int64), "actions": np.zeros((0, 4, 7), np.float32)},
    ],
)
def test_arrays_that_are_no_recording_are_named_with_their_shapes(tmp_path, changes):
    good = {"actions": np.zeros((2, 4, 7), np.float32), "subtask": np.zeros(2, np.int64)}
    write_arrays(tmp_path / "a.npz", good)
    assert len(read_recording(tmp_path / "a.npz").actions) == 2
    write_arrays(tmp_path / "a.npz", {**good, **changes})
    with pytest.raises(InputError, match=r"a\.npz holds no recorded outputs: expected actions .*found .*float32"):
        read_recording(tmp_path / "a.npz")
