from __future__ import annotations

import shutil

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter, Label
from vw2_robot.data.labeled_steps import cut_steps, open_labeled_steps, target_names
from vw2_robot.errors import InputError


def write(root, lengths=(13, 6, 3), *, labels=None):
    """Action dx at time t is t, the gripper opens from time 5 on; x is t squared, roll goes through pi."""
    writer = CalvinWriter(root, "training", compress_level=0)
    for number, length in enumerate(lengths):
        t = np.arange(length, dtype=float)
        actions = np.zeros((length, 7))
        actions[:, 0], actions[:, 6] = t, np.where(t >= 5, 1, -1)
        state = np.zeros((length, 15))
        state[:, 0], state[:, 3] = t**2, (np.pi - 0.15 + 0.1 * t + np.pi) % (2 * np.pi) - np.pi
        writer.write_recording(
            {
                "rgb_static": np.full((length, 8, 8, 3), 10 * number, np.uint8)
                + t.astype(np.uint8)[:, None, None, None],
                "actions": actions,
                "rel_actions": actions,
                "robot_obs": state,
                "scene_obs": np.zeros((length, 24)),
            },
            first_frame=100 * number,
            scene="D",
            labels=labels or (Label(f"task {number}", "do it", 0, length - 1),),
        )
    writer.finish()
    return root


def opened(tmp_path, **changes):
    settings = {"name": "toy", "cache": tmp_path / "cache", "height": 8, "width": 8, "episodes": 9, "seed": 0}
    return open_labeled_steps(tmp_path / "calvin", **settings | changes)


def test_a_step_holds_the_motion_of_its_own_frames(tmp_path):
    write(tmp_path / "calvin")
    video = opened(tmp_path)
    steps = cut_steps(video, num_frames=9, stride=4)
    assert steps.episode.tolist() == [0, 0, 1]  # the third is too short for one step
    assert steps.frame_ids[0].tolist() == list(range(9))
    assert steps.frame_ids[1].tolist() == [8, 9, 10, 11, 12, 12, 12, 12, 12]
    assert steps.valid.tolist() == [[True, True], [True, False], [True, False]]
    assert steps.commanded[0, :, 0].tolist() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7]
    assert steps.commanded[0, :, 6].tolist() == [-1.0, 0.5]  # the mean, not the sum
    assert steps.moved[0, :, 0].tolist() == [16, 64 - 16]
    assert np.allclose(steps.moved[0, :, 3], 0.4)  # the short way round
    assert not steps.commanded[1, 1].any()
    assert not steps.moved[1, 1].any()
    assert np.array_equal(steps.motion, steps.moved)


def test_windows_may_begin_at_every_step_and_at_a_lower_rate(tmp_path):
    write(tmp_path / "calvin")
    video = opened(tmp_path)
    dense = cut_steps(video, num_frames=9, stride=4, every=4)
    assert dense.frame_ids[dense.episode == 0][:, 0].tolist() == [0, 4, 8]
    slow = cut_steps(video, num_frames=5, stride=4, target_hz=10)
    assert slow.frame_ids[0].tolist() == [0, 3, 6, 9, 12]
    assert slow.commanded[0, 0, 0] == sum(range(12))
    timed = cut_steps(video, num_frames=5, stride=4, gap_seconds=12 / 30)
    assert timed.frame_ids.tolist() == slow.frame_ids.tolist()


def test_a_cache_of_another_draw_is_refused_when_the_data_have_changed(tmp_path):
    write(tmp_path / "calvin")
    opened(tmp_path, episodes=2)
    shutil.rmtree(tmp_path / "calvin")
    write(tmp_path / "calvin", lengths=(13, 6, 3, 5, 7))
    with pytest.raises(InputError, match=r"cache was made from other episodes than are sampled from .*; delete"):
        opened(tmp_path, episodes=2)


def test_nothing_to_cut_is_said(tmp_path):
    write(tmp_path / "calvin", lengths=(3, 4))
    with pytest.raises(InputError, match="no episode has 5 frames"):
        cut_steps(opened(tmp_path), num_frames=5, stride=4)


def test_overlapping_labels_share_a_group(tmp_path):
    labels = (Label("a", "a", 0, 5), Label("b", "b", 5, 9), Label("c", "c", 10, 12))
    write(tmp_path / "calvin", lengths=(13, 13), labels=labels)
    group = opened(tmp_path).group
    assert len(group) == 6
    assert sorted(np.bincount(group).tolist()) == [1, 1, 2, 2]


def test_frames_and_motion_are_kept_and_a_smaller_draw_is_its_own_cache(tmp_path):
    write(tmp_path / "calvin")
    first, again = opened(tmp_path), opened(tmp_path)
    assert np.array_equal(first.commanded[0], again.commanded[0])
    assert len(opened(tmp_path, episodes=2, cache=tmp_path / "two").commanded) == 2
    with pytest.raises(InputError, match="another kind"):
        opened(tmp_path, episodes=2)


def test_damaged_or_foreign_motion_is_refused(tmp_path):
    write(tmp_path / "calvin")
    opened(tmp_path)
    (motion,) = tmp_path.rglob("motion.npz")
    whole = motion.read_bytes()
    motion.write_bytes(whole[:-30])
    with pytest.raises(
        InputError, match=r"motion\.npz cannot be read, it is damaged .* delete it, and it is made again"
    ):
        opened(tmp_path)
    np.savez(motion, commanded=np.zeros((5, 7)))
    with pytest.raises(InputError, match=r"motion\.npz: commanded has shape \(5, 7\), expected 22 rows"):
        opened(tmp_path)
    motion.unlink()
    opened(tmp_path)
    assert motion.read_bytes() == whole


def test_columns_have_names():
    assert target_names("commanded", ("a", "b")) == ("a", "b")
    assert target_names("moved", ("a", "b"))[6] == "opening"
    assert len(target_names("moved", ("a", "b"))) == 7
