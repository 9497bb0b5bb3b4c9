"""Finding data sets: every format is described from its own files, and what is missing is said."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.doctor.data_sets import find_data_sets
from vw2_robot.errors import InputError


def write_calvin(root, split="training"):
    writer = CalvinWriter(root, split)
    arrays = {
        "rgb_static": np.zeros((5, 12, 10, 3), np.uint8),
        "actions": np.zeros((5, 7)),
        "rel_actions": np.zeros((5, 7)),
        "robot_obs": np.zeros((5, 15)),
        "scene_obs": np.zeros((5, 24)),
    }
    writer.write_episode(arrays, first_frame=0, task="open_drawer", instruction="pull the drawer", scene="A")
    writer.finish()


def write_rlds(folder, *, name="bridge_dataset", here=(2, 1)):
    folder.mkdir(parents=True)
    splits = [
        {"name": "train", "numBytes": "10", "shardLengths": ["7", "4"]},
        {"name": "val", "numBytes": "10", "shardLengths": ["3"]},
    ]
    about = {"name": name, "version": folder.name, "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    (folder / "features.json").write_text("{}")
    for split, count, total in (("train", here[0], 2), ("val", here[1], 1)):
        for number in range(count):
            (folder / f"{name}-{split}.tfrecord-{number:05d}-of-{total:05d}").write_bytes(bytes(50))


def write_lerobot(folder, version="v3.0"):
    (folder / "meta").mkdir(parents=True)
    cameras = {f"observation.images.{name}": {"dtype": "video"} for name in ("top", "wrist")}
    info = {
        "codebase_version": version, "fps": 30, "total_episodes": 8, "splits": {"train": "0:6", "test": "6:8"},
        "features": cameras, "data_path": "data", "video_path": "videos",
    }  # fmt: skip
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def write_video(path):
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def found(root, depth=4):
    return {data_set.name: data_set for data_set in find_data_sets([Path(root)], depth=depth)}


def test_every_format_is_found_and_described(tmp_path):
    write_calvin(tmp_path / "a" / "play")
    write_rlds(tmp_path / "openx" / "bridge_dataset" / "1.0.0")
    write_lerobot(tmp_path / "hub" / "somebody" / "cups")
    write_video(tmp_path / "videos" / "training" / "one.mp4")
    write_video(tmp_path / "videos" / "validation" / "two.mp4")
    (tmp_path / "pickles" / "toto").mkdir(parents=True)
    (tmp_path / "pickles" / "toto" / "episode_0.pkl").write_bytes(pickle.dumps({}))
    sets = found(tmp_path)
    assert {name: (s.format, s.version, dict(s.splits), s.hz) for name, s in sets.items()} == {
        "play": ("calvin", "-", {"training": 1}, 30.0),
        "bridge_dataset": ("rlds", "1.0.0", {"train": 11, "val": 3}, 5.0),
        "cups": ("lerobot", "v3.0", {"train": 6, "test": 2}, 30.0),
        "videos": ("video", "-", {"training": 1, "validation": 1}, 24.0),
        "toto": ("pickle", "-", {"all": 1}, 30.0),
    }
    assert not any(data_set.problems for data_set in sets.values())
    assert sets["cups"].note == "cameras: top, wrist; image_key chooses"
    assert sets["videos"].note == "2 of 2 without instruction"
    files = (tmp_path / "a" / "play" / "training").glob("episode_*.npz")
    assert sets["play"].num_bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)


def test_videos_of_our_own_rollouts_are_no_data(tmp_path):
    write_video(tmp_path / "rollout" / "videos" / "chain_0000.mp4")
    (tmp_path / "rollout" / "results.jsonl").touch()
    write_video(tmp_path / "videos" / "a.mp4")
    assert list(found(tmp_path)) == ["videos"]


def test_of_what_the_live_page_saved_the_recordings_are_data(tmp_path):
    write_video(tmp_path / "live" / "video" / "episode_0000.mp4")
    (tmp_path / "live" / "episodes.jsonl").touch()
    assert found(tmp_path) == {}
    write_calvin(tmp_path / "live" / "calvin")
    assert list(found(tmp_path)) == ["calvin"]


def test_a_folder_of_videos_beside_other_sets_does_not_swallow_them(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4")
    write_rlds(tmp_path / "openx" / "bridge_dataset" / "1.0.0")
    assert set(found(tmp_path)) == {"videos", "bridge_dataset"}


def test_several_versions_of_a_set_are_several_sets(tmp_path):
    for version in ("0.1.0", "1.0.0"):
        write_rlds(tmp_path / "bridge_dataset" / version)
    versions = [data_set.version for data_set in find_data_sets([tmp_path], depth=2)]
    assert versions == ["0.1.0", "1.0.0"]


def test_a_folder_of_runs_shows_every_set_that_was_recorded_there(tmp_path):
    write_rlds(tmp_path / "arms")  # as vw2-record writes it, without a folder for the version
    write_lerobot(tmp_path / "calvin")
    assert sorted(one.format for one in find_data_sets([tmp_path], depth=1)) == ["lerobot", "rlds"]


def test_a_set_reached_by_two_ways_is_listed_once(tmp_path):
    write_rlds(tmp_path / "bridge_dataset" / "1.0.0")
    assert len(find_data_sets([tmp_path, tmp_path / "bridge_dataset"], depth=3)) == 1


def test_depth_is_kept(tmp_path):
    write_rlds(tmp_path / "a" / "b" / "c" / "bridge_dataset" / "1.0.0")
    assert not found(tmp_path, depth=2)
    assert found(tmp_path, depth=4)


def test_missing_files_of_a_set_are_counted(tmp_path):
    write_rlds(tmp_path / "bridge_dataset" / "1.0.0", here=(1, 0))
    assert found(tmp_path)["bridge_dataset"].problems == (
        "split train: 1 of 2 files are here: copy the data set again",
        "split val: 0 of 1 files are here: copy the data set again",
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: write_lerobot(root / "set", "v2.1"), r"version v2\.1, expected v3\.0; convert it"),
        (
            lambda root: (write_calvin(root / "set"), (root / "set/training/episode_0000002.npz").unlink()),
            "1 of 5 frames",
        ),
        (lambda root: (write_rlds(root / "set"), (root / "set/dataset_info.json").unlink()), "info.json is missing"),
        (lambda root: (write_rlds(root / "set"), (root / "set/dataset_info.json").write_text("{")), "is damaged"),
        (
            lambda root: (write_video(root / "set/a.mp4"), (root / "set/a.mp4").write_bytes(b"")),
            "cannot be read as a video",
        ),
    ],
)
def test_a_damaged_set_is_listed_with_its_problem(tmp_path, make, said):
    make(tmp_path)
    (data_set,) = find_data_sets([tmp_path], depth=1)
    assert len(data_set.problems) == 1
    assert re.search(said, data_set.problems[0])


def test_play_without_labels_says_how_it_can_be_read(tmp_path):
    write_calvin(tmp_path / "play")
    (tmp_path / "play" / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    assert found(tmp_path)["play"].note == "training has no labels: trajectories=recordings"


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"gone is not a folder; give data\.path"):
        find_data_sets([tmp_path / "gone"], depth=1)
