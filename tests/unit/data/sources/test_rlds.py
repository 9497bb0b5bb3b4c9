"""RLDS data sets, read and written. What the table of sources says of them is tested in test_openx_schemas."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra openx)")
tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")

from vw2_robot.data.clips import ClipSampler  # noqa: E402
from vw2_robot.data.episodes import Demonstration, Episode, encode_jpeg  # noqa: E402
from vw2_robot.data.frame_cache import FrameCache, cache_frames, split_episodes  # noqa: E402
from vw2_robot.data.rlds_writer import write_rlds  # noqa: E402
from vw2_robot.data.sources.openx import find_source  # noqa: E402
from vw2_robot.data.sources.rlds import RldsSource, read_rlds  # noqa: E402
from vw2_robot.data.sources.rlds_builder import _class_names, describe_rlds  # noqa: E402
from vw2_robot.errors import InputError  # noqa: E402


@pytest.fixture(scope="session")
def bridge(shared_dir: Path) -> Path:
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    return folder


def demonstration(number: int, *, length: int = 4, hz: float = 12.5, actions: int | None = None) -> Demonstration:
    rng = np.random.default_rng(number)
    images = tuple(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(length))
    episode = Episode("simulator", f"recording {number}", f"lift block {number}", hz, images)
    return Demonstration(episode, rng.uniform(-1, 1, (length if actions is None else actions, 7)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven training episodes in three shards, one validation episode of one step."""
    out = tmp_path_factory.mktemp("sets") / "vw2_arms" / "1.0.0"
    write_rlds(
        out,
        name="vw2_arms",
        version="1.0.0",
        episodes={
            "train": (demonstration(number) for number in range(7)),
            "val": [demonstration(7, length=1, actions=0)],
        },
        max_episodes_per_shard=3,
    )
    return out


# ------------------------------------------------------------------------------------------------------- real data


def test_the_real_bridge_sample_is_described_without_being_read(bridge: Path) -> None:
    found = describe_rlds(bridge)
    assert (found.name, found.version, found.hz) == ("bridge_dataset", "1.0.0", 5)
    assert found.splits == {"train": 25, "val": 25}
    assert found.image_keys == {f"image_{number}": (64, 64) for number in range(4)}
    assert found.language_key == ("language_instruction",)


def test_the_real_bridge_episodes_come_compressed_with_words_and_rate(bridge: Path) -> None:
    episodes = list(read_rlds(bridge, split="train"))
    assert [episode.episode_id for episode in episodes] == [f"train/{number:06d}" for number in range(25)]
    assert {(episode.source, episode.hz, len(episode)) for episode in episodes} == {("bridge_dataset", 5.0, 10)}
    assert {episode.instruction for episode in episodes} == {
        "put cup from counter or drying rack into sink",
        "flip pot upright which is in sink",
        "turn lever vertical to front",
        "put carrot on plate",
    }
    assert all(isinstance(image, bytes) and image.startswith(b"\xff\xd8") for image in episodes[0].images)
    decoded = episodes[0].decode(9)
    assert decoded.shape == (64, 64, 3)
    assert decoded.std() > 20


def test_our_decoder_agrees_with_that_of_tensorflow_on_real_images(bridge: Path) -> None:
    """Exactly, with TensorFlow's accurate transform; its default is a faster one that is off by a few gray levels."""
    episode = next(iter(read_rlds(bridge)))
    for index in range(len(episode)):
        theirs = tf.io.decode_jpeg(episode.images[index], dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(episode.decode(index), theirs)


def test_reading_may_start_anywhere_and_from_a_slice(bridge: Path) -> None:
    everything = list(read_rlds(bridge))
    late = list(read_rlds(bridge, start=22))
    assert [episode.episode_id for episode in late] == ["train/000022", "train/000023", "train/000024"]
    assert [episode.images for episode in late] == [episode.images for episode in everything[22:]]
    part = list(read_rlds(bridge, split="train[5:9]", start=2))
    assert [episode.images for episode in part] == [episode.images for episode in everything[7:9]]
    assert list(read_rlds(bridge, start=25)) == []


def test_the_bridge_sample_has_25_videos_under_50_names_and_none_on_both_sides(bridge: Path, tmp_path: Path) -> None:
    both = [episode for split in ("train", "val") for episode in read_rlds(bridge, split=split)]
    cache_frames(both, tmp_path / "c", height=32, width=32, description={"path": "bridge"})
    cache = FrameCache(tmp_path / "c")
    videos: dict[str, list[str]] = {}
    for cached in cache.episodes:
        videos.setdefault(cached.sha256, []).append(cached.episode_id[:5])
    assert len(videos) == 25
    assert all(sorted(names) == ["train", "val/0"] for names in videos.values())
    training, validation = split_episodes(cache, validation_fraction=0.1, seed=0)
    assert {cache.episodes[number].sha256 for number in training}.isdisjoint(
        cache.episodes[number].sha256 for number in validation
    )
    assert (len(training), len(validation)) == (44, 6)
    batch = ClipSampler(cache, training, num_frames=9, seed=0).batch(0, 8)
    assert batch.pixels.shape == (8, 9, 32, 32, 3)


# ------------------------------------------------------------------------------------------------------ own writing


def test_what_was_written_is_read_back(written: Path) -> None:
    found = describe_rlds(written)
    assert (found.name, found.version, found.splits) == ("vw2_arms", "1.0.0", {"train": 7, "val": 1})
    assert found.image_keys == {"image": (24, 32)}
    episodes = list(read_rlds(written))
    assert [episode.instruction for episode in episodes] == [f"lift block {number}" for number in range(7)]
    assert {episode.hz for episode in episodes} == {12.5}  # stored with the episode
    for number, episode in enumerate(episodes):
        original = demonstration(number).episode
        assert episode.images == tuple(encode_jpeg(original.decode(index)) for index in range(4))
    assert len(next(iter(read_rlds(written, split="val")))) == 1
    assert {episode.hz for episode in read_rlds(written, hz=3.0)} == {3.0}


def test_tfds_itself_sees_a_proper_rlds_set(written: Path) -> None:
    builder = tfds.builder_from_directory(str(written))
    assert builder.info.splits["train"].num_shards == 3
    example = next(iter(builder.as_dataset(split="train")))
    steps = list(example["steps"].as_numpy_iterator())
    assert [step["is_first"] for step in steps] == [True, False, False, False]
    assert [step["is_last"] for step in steps] == [False, False, False, True]
    assert [step["is_terminal"] for step in steps] == [False, False, False, True]
    assert [step["reward"] for step in steps] == [0, 0, 0, 1]
    assert [step["discount"] for step in steps] == [1, 1, 1, 0]
    actions = np.stack([step["action"] for step in steps])
    np.testing.assert_array_equal(actions, demonstration(0).actions.astype(np.float32))
    assert steps[0]["observation"]["image"].shape == (24, 32, 3)
    assert example["episode_metadata"]["episode_id"].numpy() == b"recording 0"
    last = next(iter(builder.as_dataset(split="val")))["steps"]
    assert not next(last.as_numpy_iterator())["action"].any()


def test_a_cut_off_recording_is_not_terminal(tmp_path: Path) -> None:
    taken = demonstration(0)
    cut = Demonstration(taken.episode, taken.actions, terminal=False)
    write_rlds(tmp_path / "s", name="cut", version="1.0.0", episodes={"train": [cut]})
    example = next(iter(tfds.builder_from_directory(str(tmp_path / "s")).as_dataset(split="train")))
    last = list(example["steps"].as_numpy_iterator())[-1]
    assert (last["is_last"], last["is_terminal"], last["reward"], last["discount"]) == (True, False, 0, 1)


def test_writing_is_all_or_nothing_and_reproducible(tmp_path: Path) -> None:
    def failing() -> Any:
        yield demonstration(0)
        raise RuntimeError("the simulator broke")

    with pytest.raises(RuntimeError, match="the simulator broke"):
        write_rlds(tmp_path / "s", name="broken", version="1.0.0", episodes={"train": failing()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.tmp").mkdir()  # what a killed start leaves
    (tmp_path / ".a.tmp" / "half").touch()
    for name in ("a", "b"):
        write_rlds(tmp_path / name, name="twice", version="1.0.0", episodes={"train": [demonstration(1)]})
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_cannot_be_written_is_refused(tmp_path: Path, written: Path) -> None:
    small = Episode("simulator", "small", "", 5.0, (np.zeros((8, 8, 3), np.uint8),))
    two_sizes = [demonstration(0), Demonstration(small, np.zeros((1, 7)))]
    for out, name, version, episodes, message in (
        (written, "x", "1.0.0", [demonstration(0)], "exists already"),
        (tmp_path / "s", "Vw2-Arms", "1.0.0", [demonstration(0)], "needs a name like vw2_arms"),
        (tmp_path / "s", "x", "1", [demonstration(0)], "a version like 1.0.0"),
        (tmp_path / "s", "x", "1.0.0", [], "no episode to write"),
        (tmp_path / "s", "x", "1.0.0", two_sizes, r"episode small, frame 0: \(8, 8, 3\), the set has \(24, 32, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            write_rlds(out, name=name, version=version, episodes={"train": episodes})
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- files as parts


def same(one: Episode, other: Episode) -> bool:
    return (one.episode_id, one.instruction, one.hz, one.images) == (
        other.episode_id,
        other.instruction,
        other.hz,
        other.images,
    )


def test_files_are_parts_and_together_they_are_the_splits(written: Path) -> None:
    data = RldsSource(written, splits=("train", "val"))
    assert [(part.name, part.episodes) for part in data.parts()] == [
        ("train/vw2_arms-train.tfrecord-00000", 3),
        ("train/vw2_arms-train.tfrecord-00001", 3),
        ("train/vw2_arms-train.tfrecord-00002", 1),
        ("val/vw2_arms-val.tfrecord-00000", 1),
    ]
    everything = [*read_rlds(written), *read_rlds(written, split="val")]
    found = [episode for part in range(4) for episode in data.read(part)]
    assert [episode.episode_id for episode in found][-2:] == ["train/000006", "val/000000"]
    assert all(same(*pair) for pair in zip(found, everything, strict=True))


def test_a_part_is_read_from_any_episode_on_and_in_another_process(written: Path) -> None:
    data = pickle.loads(pickle.dumps(RldsSource(written)))
    assert [episode.episode_id for episode in data.read(1, start=2)] == ["train/000005"]
    assert same(next(data.read(1, start=2)), list(read_rlds(written))[5])
    assert list(data.read(1, start=3)) == []


def test_slices_cut_parts(written: Path) -> None:
    data = RldsSource(written, splits=("train[2:4]", "train[6:]"))
    assert [part.episodes for part in data.parts()] == [1, 1, 1]
    found = [episode for part in range(3) for episode in data.read(part)]
    assert [episode.episode_id for episode in found] == ["train/000002", "train/000003", "train/000006"]
    assert [episode.instruction[-1] for episode in found] == ["2", "3", "6"]


def test_a_path_with_a_scheme_goes_through_tensorflow(written: Path) -> None:
    """`ram://` stands for a bucket: TFDS does not know it, TensorFlow does."""
    for file in written.iterdir():
        tf.io.gfile.makedirs("ram://bucket/vw2_arms/1.0.0")
        tf.io.gfile.copy(str(file), f"ram://bucket/vw2_arms/1.0.0/{file.name}", overwrite=True)
    assert describe_rlds("ram://bucket/vw2_arms").path == "ram://bucket/vw2_arms/1.0.0"
    data = pickle.loads(pickle.dumps(RldsSource("ram://bucket/vw2_arms")))
    assert all(same(*pair) for pair in zip(data.read(0), list(read_rlds(written))[:3], strict=True))
    assert len(list(read_rlds(f"file://{written}"))) == 7
    with pytest.raises(InputError, match="ram://bucket/nothing is no TFDS data set"):
        RldsSource("ram://bucket/nothing")


def test_a_record_of_another_form_is_named_and_skipped(damaged: Callable[[Callable[[Path], None]], Path]) -> None:
    def empty_the_middle(folder: Path) -> None:
        shard = second_shard(folder)
        records = list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for record in (records[0], tf.train.Example().SerializeToString(), records[2]):
                writer.write(record)

    data = RldsSource(damaged(empty_the_middle), max_skipped=1)
    assert [episode.episode_id for episode in data.read(1)] == ["train/000003", "train/000005"]
    (message,) = data.skipped.messages
    assert "episode train/000004" in message
    with pytest.raises(InputError, match="too many unusable episodes: 2 where 1 were allowed"):
        list(data.read(1))


def write_array_record(out: Path) -> Path:
    feature = tfds.features
    step = {"observation": {"image": feature.Image(shape=(16, 20, 3))}, "language_instruction": feature.Text()}
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="cmu_stretch", version=tfds.core.Version("0.1.0"), data_dir=str(out), module_name=""
    )
    features = feature.FeaturesDict({"steps": feature.Dataset(step)})
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="")
    info.set_file_format("array_record")
    writer = tfds.core.SequentialWriter(info, 3, overwrite=True, file_format="array_record")
    writer.initialize_splits(["train"], fail_if_exists=False)
    for number in range(5):
        image = np.full((16, 20, 3), number, np.uint8)
        steps = [{"observation": {"image": image}, "language_instruction": f"task {number}"}] * (number + 1)
        writer.add_examples({"train": [{"steps": steps}]})
    writer.close_all()
    return out


def write_own(out: Path, *, observation: dict[str, Any], metadata: dict[str, Any]) -> Path:
    """A set that is in no table: two episodes of three steps; an entry is (feature, its value by episode and step)."""

    def features_of(entries: dict[str, Any]) -> dict[str, Any]:
        return {key: features_of(entry) if isinstance(entry, dict) else entry[0] for key, entry in entries.items()}

    def values(entries: dict[str, Any], k: int, t: int) -> dict[str, Any]:
        return {key: values(e, k, t) if isinstance(e, dict) else e[1](k, t) for key, e in entries.items()}

    feature = tfds.features
    whole = {"observation": observation}
    out.mkdir()
    features = feature.FeaturesDict(
        {"steps": feature.Dataset(features_of(whole)), "episode_metadata": features_of(metadata)}
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="my_robot", version=tfds.core.Version("1.0.0"), data_dir=str(out), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="")
    info.set_file_format("tfrecord")
    writer = tfds.core.SequentialWriter(info, 10, overwrite=True)
    writer.initialize_splits(["train"], fail_if_exists=False)
    for k in range(2):
        steps = [values(whole, k, t) for t in range(3)]
        writer.add_examples({"train": [{"steps": steps, "episode_metadata": values(metadata, k, 0)}]})
    writer.close_all()
    return out


def image(shade: int) -> tuple[Any, Callable[[int, int], NDArray[np.uint8]]]:
    return tfds.features.Image(shape=(8, 8, 3)), lambda k, t: np.full((8, 8, 3), shade + 10 * k + t, np.uint8)


def scalar(value: float) -> tuple[Any, Callable[[int, int], np.float32]]:
    return tfds.features.Scalar(dtype=np.float32), lambda k, t: np.float32(value)


def test_images_and_words_of_a_set_of_ones_own_are_found_where_they_lie(tmp_path: Path) -> None:
    """Three numbers in a dictionary are no image; images in one have a name with a slash; words may be metadata."""
    joints = {"joints": scalar(0), "tool": scalar(0), "gripper": scalar(0)}
    say = (tfds.features.Text(), lambda k, t: f"push {k}")
    number = (tfds.features.Scalar(dtype=np.int64), lambda k, t: k)
    folder = write_own(
        tmp_path / "nested",
        observation={"images": {"top": image(0), "wrist": image(100)}, "state": joints},
        metadata={"language_instruction": number, "instruction": say},
    )
    assert describe_rlds(folder).image_keys == {"images/top": (8, 8), "images/wrist": (8, 8)}
    with pytest.raises(InputError, match=r"set image_key to one of: images/top 8x8, images/wrist 8x8"):
        RldsSource(folder, hz=5)
    with pytest.raises(InputError, match=r"rate of 'my_robot' is not known .* give hz, .*\(data\.hz=5\)"):
        RldsSource(folder, image_key="images/top")
    for key, shade in (("images/top", 0), ("images/wrist", 100)):
        data = pickle.loads(pickle.dumps(RldsSource(folder, image_key=key, hz=5)))
        found = list(data.read(0))
        assert [(e.instruction, e.hz, len(e)) for e in found] == [("push 0", 5.0, 3), ("push 1", 5.0, 3)]
        assert [int(e.decode(2).max()) for e in found] == [shade + 2, shade + 12]

    only = write_own(tmp_path / "only", observation={"image": image(0), "state": joints}, metadata={"hz": scalar(7)})
    (first, _) = RldsSource(only).read(0)
    assert (first.instruction, first.hz, first.decode(1).max()) == ("", 7.0, 1)
    blind = write_own(tmp_path / "blind", observation={"state": joints}, metadata={"hz": scalar(7)})
    with pytest.raises(InputError, match=r"has no image: expected uint8 .* which holds: state"):
        RldsSource(blind)


def test_array_record_files_are_read_too_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    data = RldsSource(write_array_record(tmp_path))
    later = RldsSource(tmp_path, splits=("train[1:]",))
    assert all(same(*pair) for pair in zip(data.read(0, start=1), later.read(0), strict=True))
    assert [part.episodes for part in data.parts()] == [3, 2]
    found = [episode for part in range(2) for episode in data.read(part)]
    assert [(episode.episode_id, episode.instruction, len(episode)) for episode in found] == [
        (f"train/{number:06d}", f"task {number}", number + 1) for number in range(5)
    ]
    assert [episode.decode(0).max() for episode in found] == [0, 1, 2, 3, 4]
    assert [episode.episode_id for episode in pickle.loads(pickle.dumps(data)).read(1, start=1)] == ["train/000004"]
    shard = second_shard(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-20])
    assert len(list(data.read(0))) == 3
    with pytest.raises(InputError, match=r"train\.array_record-00001 is damaged after 0 of 2 episodes"):
        list(data.read(1))


def test_a_local_set_is_opened_without_tensorflow(written: Path) -> None:
    code = (
        "import sys; from vw2_robot.data.sources.rlds import RldsSource\n"
        "from vw2_robot.data.sources.rlds_builder import describe_rlds\n"
        f"assert len(RldsSource({str(written)!r}).parts()) == 3 and describe_rlds({str(written)!r}).num_bytes > 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[4], check=True)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def damaged(tmp_path: Path, written: Path) -> Callable[[Callable[[Path], None]], Path]:
    def make(damage: Callable[[Path], None]) -> Path:
        out = Path(shutil.copytree(written, tmp_path / "vw2_arms"))
        damage(out)
        return out

    return make


def second_shard(folder: Path) -> Path:
    return sorted(folder.glob("*train*"))[1]


def cut(folder: Path) -> None:
    shard = second_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-20])


def flip(folder: Path) -> None:
    shard = second_shard(folder)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))


def drop_a_record(folder: Path) -> None:
    shard = second_shard(folder)
    content = shard.read_bytes()
    (first,) = struct.unpack("<Q", content[:8])
    shard.write_bytes(content[: first + 16])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"train\.tfrecord-00001 is damaged after 2 of 3 episodes \(DataLossError\); copy or download"),
        (flip, r"train\.tfrecord-00001 is damaged after 1 of 3 episodes \(DataLossError\)"),
        (drop_a_record, r"train\.tfrecord-00001 holds no more than 1 episodes, dataset_info\.json says 3"),
        (lambda folder: second_shard(folder).unlink(), r"train\.tfrecord-00001 is damaged .* \(NotFoundError\)"),
    ],
    ids=["cut off", "bit rot", "fewer records", "missing"],
)
def test_a_damaged_shard_is_named(
    damaged: Callable[[Callable[[Path], None]], Path], damage: Callable[[Path], None], message: str
) -> None:
    folder = damaged(damage)
    with pytest.raises(InputError, match=message):
        list(read_rlds(folder))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_refused(damaged: Callable[[Callable[[Path], None]], Path], name: str) -> None:
    folder = damaged(lambda folder: (folder / name).write_text('{"a": '))
    with pytest.raises(InputError, match=rf"{name} is damaged: .* copy the data set again"):
        describe_rlds(folder)
    (folder / "manifest.json").unlink()  # as in data sets of others
    with pytest.raises(InputError, match=r"is damaged|cannot be opened as a TFDS data set .* copy them again"):
        describe_rlds(folder)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_a_description_imports_nothing(
    damaged: Callable[[Callable[[Path], None]], Path], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    def name_a_module(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        (folder / "evil.py").write_text("raise SystemExit('ran')")
        text = (folder / "features.json").read_text()
        scalar = '"pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar"'
        assert scalar in text
        (folder / "features.json").write_text(text.replace(scalar, f'"{key}": "evil.Evil"', 1))

    folder = damaged(name_a_module)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(InputError, match=r"features\.json names 'evil\.Evil', which is no feature of TFDS"):
        RldsSource(folder)


def test_a_class_inside_a_text_of_a_description_is_seen() -> None:
    inside = json.dumps({"feature": {"type": "evil.Evil", "content": {}}})
    assert list(_class_names({"a": [{"jsonFeature": {"json": inside}}]})) == ["evil.Evil"]


@pytest.mark.parametrize("size", ["0", str(2**40)])
def test_shapes_that_would_end_the_process_are_refused(
    damaged: Callable[[Callable[[Path], None]], Path], size: str
) -> None:
    def state_a_shape(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        text = (folder / "features.json").read_text()
        (folder / "features.json").write_text(re.sub(r'"dimensions": \[\s*"7"\s*\]', f'"dimensions": ["{size}"]', text))

    data = RldsSource(damaged(state_a_shape))
    with pytest.raises(InputError, match=rf"features\.json states the shape \(None, {size}\)"):
        list(data.read_numbers(0, [("action",)]))


def test_a_length_beyond_the_file_is_refused_before_tensorflow_makes_room(
    damaged: Callable[[Callable[[Path], None]], Path],
) -> None:
    """With the right checksum, as whoever wants to harm would write it: TensorFlow would end the process."""

    def claim_an_exabyte(folder: Path) -> None:
        length = struct.pack("<Q", 2**60)
        checksum = struct.pack("<I", 0x8E4E23C4)
        shard = second_shard(folder)
        shard.write_bytes(length + checksum + shard.read_bytes()[12:])

    data = RldsSource(damaged(claim_an_exabyte))
    with pytest.raises(InputError, match=r"vw2_arms-train\.tfrecord-00001 is damaged after 0 of 3 episodes"):
        list(data.read(1))
    with pytest.raises(InputError, match=r"is damaged after 0 of 3 episodes"):
        list(data.read_numbers(1, [("action",)]))


@pytest.mark.slow
def test_tensorflow_leaves_nothing_behind_where_there_is_no_home(tmp_path: Path) -> None:
    code = "from vw2_robot.data.sources.rlds_builder import load_tensorflow; load_tensorflow()"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "KERAS_HOME")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[4])
    stranger = ["unshare", "--user", "--map-user=12345"]  # a user without an entry, as in containers
    if subprocess.run([*stranger, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    subprocess.run([*stranger, sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, written: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_rlds(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; expected the folder"):
        read_rlds(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"is no TFDS data set; expected a folder with dataset_info\.json"):
        read_rlds(tmp_path / "empty")
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(written, tmp_path / "two" / version)
    with pytest.raises(InputError, match=r"holds 2 data sets \(1\.0\.0, 2\.0\.0\): name one"):
        read_rlds(tmp_path / "two")
    (tmp_path / "two/2.0.0/features.json").unlink()
    with pytest.raises(InputError, match=r"has no features\.json"):
        read_rlds(tmp_path / "two/2.0.0")
    assert describe_rlds(written.parent).path == str(written)  # a single version is found from above


def test_a_tfds_set_that_is_not_rlds_is_refused(tmp_path: Path) -> None:
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="digits", version=tfds.core.Version("1.0.0"), data_dir=str(tmp_path), module_name=""
    )
    features = tfds.features.FeaturesDict({"label": tfds.features.Scalar(dtype=np.int64)})
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="")
    info.set_file_format("tfrecord")
    writer = tfds.core.SequentialWriter(info, 10, overwrite=True)
    writer.initialize_splits(["train"], fail_if_exists=False)
    writer.add_examples({"train": [{"label": 1}]})
    writer.close_all()
    with pytest.raises(InputError, match=r"not in RLDS form: expected steps with an observation, found \['label'\]"):
        describe_rlds(tmp_path)


def test_a_missing_split_is_answered_with_those_that_exist(written: Path) -> None:
    for split in ("test", "train[9:]", "train[:"):
        with pytest.raises(InputError, match=r"has no split .* available: train \(7 episodes\), val \(1 episodes\)"):
            read_rlds(written, split=split)


def test_a_missing_image_is_answered_with_those_that_exist(bridge: Path, written: Path) -> None:
    with pytest.raises(InputError, match="has no image 'rgb'; set image_key to one of: image 24x32"):
        read_rlds(written, image_key="rgb")
    with pytest.raises(InputError, match=r"has no image 'rgb_static'; .*image_0 64x64, image_1 64x64"):
        read_rlds(bridge, source=find_source("taco_play"))


def test_unusable_episodes_are_counted(tmp_path: Path) -> None:
    episodes = [demonstration(0), demonstration(1, hz=0.0), demonstration(2, hz=float("nan")), demonstration(3)]
    write_rlds(tmp_path / "s", name="vw2_arms", version="1.0.0", episodes={"train": episodes})
    assert [episode.episode_id for episode in read_rlds(tmp_path / "s", max_skipped=2)] == [
        "train/000000",
        "train/000003",
    ]
    with pytest.raises(InputError, match=r"2 where 1 were allowed; the last: vw2_arms, episode train/000002"):
        list(read_rlds(tmp_path / "s", max_skipped=1))


def test_a_missing_tensorflow_is_answered_with_the_extra() -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from vw2_robot.data.sources.rlds import read_rlds\n"
        "from vw2_robot.errors import MissingExtraError\n"
        "try: read_rlds('.')\n"
        "except MissingExtraError as error: assert '[openx]' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[4], check=True)


def test_nothing_but_rlds_brings_tensorflow_in() -> None:
    code = (
        "import sys, pkgutil, importlib, vw2_robot.data as data\n"
        "for module in pkgutil.iter_modules(data.__path__): importlib.import_module(f'vw2_robot.data.{module.name}')\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'reverb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[4], check=True)


@pytest.mark.slow
def test_nobody_without_a_home_gets_a_folder_called_tilde(tmp_path: Path) -> None:
    code = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody; del os.environ['HOME']\n"
        "from vw2_robot.data.sources.rlds_builder import load_tensorflow\n"
        "load_tensorflow()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())
