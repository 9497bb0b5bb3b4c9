import numpy as np
import pytest
import torch

from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.sources.object_arrays import load_object
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.finetune.datasets import measure_statistics
from vw2_robot.finetune.labeled_windows import (
    LabeledWindows,
    cache_trajectories,
    end_effector_poses,
    split_trajectories,
    window_offsets,
)


def opened(root):
    dataset = CalvinDataset(root)
    return dataset, cache_trajectories(dataset, root / "frames", height=8, width=8)


def plain():
    """Statistics that change nothing, so that windows show the actions themselves."""
    return ActionStatistics.from_actions(np.array([[0.0] * 6 + [1.0]]), mode="none")


def windows_of(root, trajectories=(1, 3), *, latent_steps=1, stride=4, statistics=None):
    dataset, frames = opened(root)
    return LabeledWindows(
        dataset, frames, trajectories, latent_steps=latent_steps, stride=stride, statistics=statistics or plain()
    )


def test_the_cache_holds_the_trajectories_in_order_and_needs_no_actions(write_calvin):
    dataset, frames = opened(write_calvin())
    assert [e.episode_id for e in frames.episodes] == [t.trajectory_id for t in dataset.trajectories]
    assert set(dataset.reads) == {"rgb_static"}
    assert frames.read(2, [0, 3])[:, 0, 0].tolist() == [[40, 0, 0], [40, 30, 0]]


def test_a_cache_of_other_trajectories_is_refused(write_calvin, tmp_path):
    opened(write_calvin(3))
    other = CalvinDataset(write_calvin(2, name="other"))
    with pytest.raises(InputError, match="choose another folder or delete it"):
        cache_trajectories(other, tmp_path / "calvin" / "frames", height=8, width=8)


def test_every_time_step_but_the_last_starts_a_window(write_calvin):
    windows = windows_of(write_calvin())
    assert len(windows) == 12
    assert windows.episode.tolist() == [1] * 6 + [3] * 6
    assert windows.start.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert windows.instructions(np.array([0, 11])) == ["do 1", "do 3"]


def test_shuffled_codes_are_those_of_other_windows_with_the_ends_that_belong_to_them(write_calvin):
    windows = windows_of(write_calvin())
    windows.codes = np.arange(12).reshape(12, 1, 1)
    valid = windows.valid.copy()
    windows.shuffle_codes(seed=3)
    given = windows.codes[:, 0, 0]
    assert sorted(given) == list(range(12))
    assert (given != np.arange(12)).all()
    np.testing.assert_array_equal(windows.valid, valid[given])
    again = windows_of(windows.frame_cache.path.parent)
    again.codes = np.arange(12).reshape(12, 1, 1)
    again.shuffle_codes(seed=4)
    assert (again.codes[:, 0, 0] != given).any()


def test_clips_are_what_codes_are_made_of_and_their_statistics_can_be_measured(write_calvin, dldm):
    windows = windows_of(write_calvin())
    clips = windows.clips(np.array([0, 5]), torch.device("cpu"))
    assert clips.shape == (2, 5, 3, 8, 8)
    green = ((clips[:, :, 1, 0, 0] + 1) * 127.5).round().int()
    assert green.tolist() == [[0, 10, 20, 30, 40], [50, 60, 60, 60, 60]]  # the second runs past the end
    measure_statistics(dldm, windows, torch.device("cpu"))
    whole = windows.clips(np.flatnonzero(windows.valid.all(1)), torch.device("cpu"))
    with torch.no_grad():
        spread = dldm.pre_quant(dldm.qformer(dldm.features(whole))).flatten(2).flatten(0, 1)
    torch.testing.assert_close(spread.mean(0), torch.zeros(16), atol=1e-3, rtol=0)


def test_poses_are_those_of_the_images_and_are_read_only_where_they_are_wanted(write_calvin):
    dataset, frames = opened(write_calvin())
    LabeledWindows(dataset, frames, (1, 3), latent_steps=1, stride=4)
    assert "robot_obs" not in dataset.reads
    windows = LabeledWindows(dataset, frames, (1, 3), latent_steps=1, stride=4, with_poses=True)
    assert dataset.reads["robot_obs"] == sum(dataset.trajectories[i].length for i in (1, 3))
    assert windows.poses.shape == (len(windows), 10)
    for row in range(len(windows)):
        obs = dataset.read(dataset.trajectories[windows.episode[row]], "robot_obs", [int(windows.start[row])])
        np.testing.assert_allclose(windows.poses[row], end_effector_poses(obs)[0])


def test_a_pose_does_not_jump_where_an_angle_does():
    obs = np.zeros((2, 15))
    obs[:, 3] = np.pi - 1e-4, -np.pi + 1e-4
    obs[:, :3] = 0.1, -0.1, 0.65
    obs[:, 6] = 0.08
    poses = end_effector_poses(obs)
    np.testing.assert_allclose(poses[0], poses[1], atol=1e-3)
    np.testing.assert_allclose(poses[0][[0, 1, 2, 9]], [1, 0, 1, 2], atol=1e-6)


@pytest.mark.parametrize(("latent_steps", "stride"), [(1, 4), (2, 2), (2, 3)])
def test_rows_of_a_window_are_the_actions_that_lead_to_its_frames(write_calvin, latent_steps, stride):
    """Latent step k covers frames s(k-1)+1 .. sk: the transitions of actions a[s(k-1)] .. a[sk-1]."""
    windows = windows_of(write_calvin(), latent_steps=latent_steps, stride=stride)
    span = latent_steps * stride
    for row in range(len(windows)):
        start, number = int(windows.start[row]), int(windows.episode[row])
        for k in range(1, latent_steps + 1):
            for i in range(stride * (k - 1), stride * k):
                action = windows.actions[row, i]
                real = windows.action_mask[row, i]
                assert real == (start + i < 7)
                time = start + i
                expected = [time / 10, number / 20, 0, 0, 0, 0, 1 if time % 2 else -1] if real else [0] * 7
                np.testing.assert_allclose(action, expected, atol=1e-7)
            # The step has a code only if all of its frames exist: the last is frame `start + s k` of seven.
            assert windows.valid[row, k - 1] == (start + stride * k <= 6)
    assert windows.actions.shape == (12, span, 7)


class FramesSeen(torch.nn.Linear):
    """Stands for a dLDM: its codes are the green pixels of the clip's frames."""

    def __init__(self, stride):
        super().__init__(1, 1)
        self.stride = stride

    def window_indices(self, video, starts, *, latent_steps):
        green = ((video[:, 1, 0, 0] + 1) * 127.5 / 10).round().long()
        return green[self.stride * starts[:, None] + torch.arange(1 + self.stride * latent_steps)][:, None]


def test_codes_are_of_the_frames_that_follow_a_start_and_stop_at_the_end(write_calvin):
    windows = windows_of(write_calvin())
    windows.encode_codes(FramesSeen(stride=4), torch.device("cpu"), batch_size=5)
    expected = [[min(start + t, 6) for t in range(5)] for start in windows.start]
    assert windows.codes[:, 0].tolist() == expected


@pytest.mark.parametrize("time_base", [{"target_hz": 15.0}, {"gap_seconds": 2 * 2 / 30}])
def test_a_window_lasts_as_long_as_the_codes_were_learned_to_last(write_calvin, time_base):
    """Codes of every second frame: a latent step of two clip frames spans four frames, and the actions between them."""
    dataset, frames = opened(write_calvin())
    windows = LabeledWindows(dataset, frames, (1, 3), latent_steps=1, stride=2, statistics=plain(), **time_base)
    windows.encode_codes(FramesSeen(stride=2), torch.device("cpu"), batch_size=5)
    for row, start in enumerate(windows.start.tolist()):
        assert windows.codes[row, 0].tolist() == [min(start + t, 6) for t in (0, 2, 4)]
        assert windows.valid[row].tolist() == [start + 4 <= 6]
        assert windows.action_mask[row].tolist() == [start + i < 7 for i in range(4)]
        times = [(start + i) / 10 if start + i < 7 else 0 for i in range(4)]
        np.testing.assert_allclose(windows.actions[row, :, 0], times, atol=1e-7)


def test_latent_steps_that_are_not_alike_in_actions_are_refused():
    assert window_offsets(1, stride=4, hz=30.0, target_hz=6.7).tolist() == [0, 4, 9, 13, 18]
    with pytest.raises(
        InputError, match=r"end at time steps \[18, 36, 54, 72, 90, 107\] .*latent_steps=1.*gap_seconds=0.6"
    ):
        window_offsets(6, stride=4, hz=30.0, target_hz=6.7)


def test_codes_are_those_of_the_dldm_whatever_the_batch_and_are_kept(write_calvin, tmp_path, dldm):
    windows = windows_of(write_calvin())
    windows.encode_codes(dldm, torch.device("cpu"), batch_size=5)
    codes = windows.codes
    assert codes.shape == (12, 1, 4)
    again = windows_of(write_calvin())
    again.encode_codes(dldm, torch.device("cpu"), keep=tmp_path)
    assert np.array_equal(codes, again.codes)
    # Kept for the next run with this dLDM; another one's codes are another file.
    (file,) = tmp_path.glob("codes_*.npy")
    np.save(file, codes + 1)
    windows.encode_codes(dldm, torch.device("cpu"), keep=tmp_path)
    assert np.array_equal(windows.codes, codes + 1)
    torch.nn.init.zeros_(next(dldm.parameters()))
    windows.encode_codes(dldm, torch.device("cpu"), keep=tmp_path)
    assert len(list(tmp_path.glob("codes_*.npy"))) == 2


def test_images_are_the_first_frames_of_their_windows(write_calvin):
    windows = windows_of(write_calvin())
    rows = np.array([2, 9])
    image = windows.images(rows, image_px=16, device=torch.device("cpu"))
    assert image.shape == (2, 3, 16, 16)
    shown = ((image[:, :, 0, 0] + 1) * 127.5).round().tolist()
    assert shown == [[20, 20, 0], [60, 30, 0]]  # trajectory 1 at time 2, trajectory 3 at time 3


def test_labels_in_other_units_are_refused_before_anything_is_learned(write_calvin):
    root = write_calvin(length=13)  # dx reaches 1.2
    with pytest.raises(
        InputError, match=r"training/0000100-0000112/task_1: dx is 1\.1 at its time step 11; .*rel_actions"
    ):
        windows_of(root)


def test_statistics_come_from_the_selected_labels_alone(write_calvin):
    dataset, frames = opened(write_calvin())
    windows = LabeledWindows(dataset, frames, (1, 3), latent_steps=1, stride=4)
    raw = np.concatenate([dataset.read_actions(dataset.trajectories[i]) for i in (1, 3)])
    assert windows.statistics.to_json() == ActionStatistics.from_actions(raw).to_json()
    assert windows.statistics.max[1] == pytest.approx(0.15)  # trajectory 7 would give 0.35
    np.testing.assert_allclose(windows.actions[:, 0], windows.statistics.normalize(raw)[[*range(6), *range(7, 13)]])


def test_only_the_actions_of_the_given_trajectories_are_opened(write_calvin):
    dataset, frames = opened(write_calvin())
    LabeledWindows(dataset, frames, (1, 3), latent_steps=1, stride=4)
    assert dataset.reads["rel_actions"] == 14


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_labels_are_exact_and_nested_and_never_held_out(write_calvin, fraction):
    dataset, frames = opened(write_calvin(12))

    def split(share, seed=0):
        return split_trajectories(dataset, frames, label_fraction=share, label_seed=seed, validation_fraction=0.25)

    chosen = split(fraction)
    assert len(chosen.validation) == 3
    assert len(chosen.train) == int(fraction * 9 + 0.5)
    assert not set(chosen.train) & set(chosen.validation)
    assert set(chosen.train) <= set(split(1.0).train)
    assert split(1.0).validation == chosen.validation
    assert split(fraction) == chosen
    assert [dataset.trajectories[i].trajectory_id for i in chosen.train] == sorted(chosen.labels.episode_ids)
    assert len({split(fraction, seed).validation for seed in range(4)}) > 1
    assert set(dataset.reads) == {"rgb_static"}


def overlap(root):
    """Shift the windows of the labels so that each trajectory shares frames with the next: one long stream."""
    file = root / "training" / "lang_annotations" / "auto_lang_ann.npy"
    (root / "training" / "manifest.json").unlink()  # of the labels as they were
    content = load_object(file)
    for n in range(12):  # one stream of frames 0 .. 6, 100 .. 106, ... is renumbered to 0 .. 83
        for t in range(7):
            (root / "training" / f"episode_{100 * n + t:07d}.npz").rename(root / "training" / f"tmp_{7 * n + t}")
    for frame in range(84):
        (root / "training" / f"tmp_{frame}").rename(root / "training" / f"episode_{frame:07d}.npz")
    del content["language"]["emb"]
    content["info"]["indx"] = [(7 * n, min(7 * n + 9, 83)) for n in range(12)]
    np.save(file, np.array(content, dtype=object), allow_pickle=True)


def test_no_frame_is_on_both_sides_where_trajectories_overlap(write_calvin):
    root = write_calvin(12)
    overlap(root)
    dataset, frames = opened(root)
    split = split_trajectories(dataset, frames, label_fraction=1.0, label_seed=0, validation_fraction=0.25)

    def span(numbers):
        return {f for i in numbers for f in range(dataset.trajectories[i].start, dataset.trajectories[i].end + 1)}

    assert split.train
    assert len(split.validation) == 3
    assert not span(split.train) & span(split.validation)
    left_out = set(range(12)) - set(split.train) - set(split.validation)
    assert left_out
    assert all(span([i]) & span(split.validation) for i in left_out)
    assert split.labels.total == len(split.train)


@pytest.mark.parametrize(("count", "share"), [(1, 0.25), (4, 0.0)])
def test_nothing_to_hold_out_is_named(write_calvin, count, share):
    dataset, frames = opened(write_calvin(count))
    with pytest.raises(InputError, match=f"none of {count} trajectories is held out at validation_fraction={share}"):
        split_trajectories(dataset, frames, label_fraction=1.0, label_seed=0, validation_fraction=share)


def test_trajectories_of_a_single_image_are_named(write_calvin):
    with pytest.raises(InputError, match="none of the 2 chosen trajectories has two time steps"):
        windows_of(write_calvin(4, length=1))
