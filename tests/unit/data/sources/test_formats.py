"""Every kind of data set is recognized by what lies in its folder and opened through one door."""

import json
import pickle

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.sources.calvin_source import CalvinSource
from vw2_robot.data.sources.formats import FORMATS, open_source, open_training, recognize
from vw2_robot.errors import InputError


def write_calvin(root, split="training", scene="B"):
    writer = CalvinWriter(root, split)
    for number, (task, words) in enumerate([("open_drawer", "pull the drawer"), ("turn_on_led", "push the button")]):
        rng = np.random.default_rng(number)
        arrays = {
            "rgb_static": rng.integers(0, 256, (4 + number, 12, 10, 3), dtype=np.uint8),
            "actions": rng.normal(size=(4 + number, 7)),
            "rel_actions": rng.uniform(-1, 1, (4 + number, 7)),
            "robot_obs": rng.normal(size=(4 + number, 15)),
            "scene_obs": rng.normal(size=(4 + number, 24)),
        }
        writer.write_episode(arrays, first_frame=100 * number, task=task, instruction=words, scene=scene)
    writer.finish()
    return root


def make_lerobot(root):
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))


def make_rlds(root):
    (root / "1.0.0").mkdir(parents=True)
    (root / "1.0.0" / "features.json").write_text("{}")
    (root / "1.0.0" / "dataset_info.json").write_text("{}")


def make_pickles(root):
    root.mkdir(parents=True)
    (root / "a.pkl").write_bytes(pickle.dumps({}))


def make_videos(root):
    (root / "training").mkdir(parents=True)
    (root / "training" / "a.WEBM").touch()


MAKERS = {
    "rlds": make_rlds, "lerobot": make_lerobot, "calvin": write_calvin, "pickle": make_pickles, "video": make_videos,
}  # fmt: skip


def test_there_is_a_folder_of_every_format_to_try():
    assert set(MAKERS) == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_is_recognized_by_its_files(tmp_path, kind):
    MAKERS[kind](tmp_path / "set")
    assert recognize(tmp_path / "set") == kind


def test_an_unknown_folder_is_told_what_was_looked_for(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(InputError) as caught:
        open_source(tmp_path)
    assert "it holds readme.txt" in str(caught.value)
    assert all(f"{kind}: {sign}" in str(caught.value) for kind, sign in FORMATS.items())
    with pytest.raises(InputError, match="is not a folder"):
        open_source(tmp_path / "gone")


def test_calvin_is_read_as_labeled_windows_or_as_whole_recordings(tmp_path):
    write_calvin(tmp_path)
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert source.name == "calvin_B"
    found = [episode for part in range(len(source.parts())) for episode in source.read(part)]
    assert [(e.instruction, len(e), e.hz) for e in found] == [
        ("pull the drawer", 4, 30.0),
        ("push the button", 5, 30.0),
    ]
    np.testing.assert_array_equal(
        found[1].decode(3), np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)[3]
    )
    assert not list(source.read(0, start=1))
    play = open_source(tmp_path, trajectories="recordings", name="play")
    whole = [episode for part in range(len(play.parts())) for episode in play.read(part)]
    assert [(e.source, e.instruction, len(e)) for e in whole] == [("play", "", 4), ("play", "", 5)]


def test_a_source_of_calvin_opens_nothing_but_images(tmp_path):
    source = CalvinSource(write_calvin(tmp_path))
    assert sum(source.dataset.reads.values()) == 0
    for part in range(len(source.parts())):
        list(source.read(part))
    assert dict(source.dataset.reads) == {"rgb_static": 9}


def test_a_split_of_calvin_is_chosen_by_name(tmp_path):
    write_calvin(tmp_path, split="validation")
    assert len(open_source(tmp_path, split="validation").parts()) == 2
    with pytest.raises(InputError, match="has the splits training, validation, found 'train'"):
        open_source(tmp_path, split="train")


def test_an_option_that_a_format_would_ignore_is_refused(tmp_path):
    write_calvin(tmp_path)
    with pytest.raises(InputError, match="in the format 'calvin', which does not use hz, image_key; its options: name"):
        open_source(tmp_path, hz=30.0, image_key="rgb_static")
    with pytest.raises(InputError, match="unknown format 'zarr'; known: auto, rlds"):
        open_source(tmp_path, format="zarr")


def test_an_old_lerobot_set_is_recognized_and_refused_for_what_it_is(tmp_path):
    make_lerobot(tmp_path / "set")
    with pytest.raises(InputError, match=r"LeRobotDataset of version v2\.1, expected v3\.0; convert it"):
        open_source(tmp_path / "set")


def test_training_reads_what_a_format_calls_training_or_the_splits_that_are_named(tmp_path, caplog):
    write_calvin(tmp_path / "calvin", split="training")
    (source,) = open_training(tmp_path / "calvin")
    assert [part.name.split("/")[0] for part in source.parts()] == ["training"] * 2
    assert [len(open_training(tmp_path / "calvin", splits=[name])[0].parts()) for name in ("train", "training")] == [
        2,
        2,
    ]
    with pytest.raises(InputError, match="no CALVIN data set with a split 'validation'"):
        open_training(tmp_path / "calvin", splits=["validation"])
    for name in ("train/a.mp4", "test/b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    videos = tmp_path / "videos"
    (source,) = open_training(videos)
    assert [part.name for part in source.parts()] == ["c.mp4", "test/b.mp4", "train/a.mp4"]
    assert "those in test too; name splits (data.splits=[train])" in caplog.text
    assert [[p.name for p in s.parts()] for s in open_training(videos, splits=["train"])] == [["a.mp4"]]
    assert [[p.name for p in s.parts()] for s in open_training(videos, splits=["test", "train"])] == [
        ["b.mp4"],
        ["a.mp4"],
    ]
    with pytest.raises(InputError, match="nosuch is not a folder"):
        open_training(videos, splits=["nosuch"])
    with pytest.raises(InputError, match="no split of"):
        open_training(videos, splits=[])
    (tmp_path / "viola").mkdir()
    (tmp_path / "viola" / "0.pickle").touch()
    with pytest.raises(InputError, match="does not use split"):
        open_training(tmp_path / "viola", splits=["train"])


def test_a_folder_of_videos_has_its_folders_as_splits(tmp_path):
    make_videos(tmp_path)
    assert [part.name for part in open_source(tmp_path).parts()] == ["training/a.WEBM"]
    assert [part.name for part in open_source(tmp_path, split="training").parts()] == ["a.WEBM"]


def test_the_real_bridge_is_opened(shared_dir):
    pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")
    folder = shared_dir / "openx" / "bridge_dataset"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    source = open_source(folder, split="train+val")
    assert source.name == "bridge_dataset"
    assert len(source.parts()) == 2
    assert open_source(folder, split="train[:3]", image_key="image_0", hz=5.0).parts()[0].episodes == 3
