"""Every source of the table, from a true TFDS data set with its real schema to a training batch.

The sets are written here: names, types and sizes as in `openx_schemas.yaml`, few episodes, drawn values. Frame i of the
image that should be used has the gray level 5 + 5 i; every other camera is nearly white.
"""

import io
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra openx)")

from vw2_robot.data.blocks import WindowOptions  # noqa: E402
from vw2_robot.data.clips import ClipSampler  # noqa: E402
from vw2_robot.data.frame_cache import FrameCache, cache_frames  # noqa: E402
from vw2_robot.data.sources.openx import OpenXSource, all_sources, find_source  # noqa: E402
from vw2_robot.data.sources.rlds import RldsSource  # noqa: E402
from vw2_robot.data.sources.rlds_builder import describe_rlds  # noqa: E402
from vw2_robot.data.stream import ClipStream, StreamOptions  # noqa: E402
from vw2_robot.errors import InputError  # noqa: E402

SCHEMAS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("openx_schemas.yaml").read_text(encoding="utf-8")
)
TARGET_HZ = 5.0
WORDS = "schiebe den Würfel"
NUMBERS = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "bool": np.bool_}
FLAGS = {"is_first": "bool", "is_last": "bool", "is_terminal": "bool"}
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"step": {}, "observation": {}, "episode": {}},
    "rtx": {
        "step": {"reward": "f32"},
        "observation": {"natural_language_instruction": "str", "natural_language_embedding": "f32 512"},
        "episode": {},
    },
    "external": {
        "step": {"discount": "f32", "reward": "f32", "language_instruction": "text", "language_embedding": "f32 512"},
        "observation": {},
        "episode": {"episode_metadata": {"file_path": "text"}},
    },
}


# ------------------------------------------------------------------------------------------------------- generator


def schema(name: str) -> dict[str, Any]:
    """The whole episode as nested kinds, such as {"steps": {"observation": {"image": "jpeg 256x320"}}}."""
    row, form = SCHEMAS[name], FORMS[SCHEMAS[name]["form"]]
    step = FLAGS | form["step"] | row.get("step", {})
    step |= {"action": row["action"], "observation": form["observation"] | row["observation"]}
    return {**form["episode"], **row.get("episode", {}), "steps": step}


def parse(kind: str) -> tuple[str, tuple[int, ...]]:
    word, _, size = kind.replace("~", "").partition(" ")
    return word, tuple(map(int, size.split("x"))) if size else ()


def feature(kind: Any) -> Any:
    """The TFDS feature of a kind."""
    if isinstance(kind, Mapping):
        return {key: feature(inner) for key, inner in kind.items()}
    word, shape = parse(kind)
    if word in NUMBERS:
        return tfds.features.Tensor(shape=shape, dtype=NUMBERS[word])
    return {
        "str": lambda: tfds.features.Tensor(shape=(), dtype=np.str_),
        "text": tfds.features.Text,
        "zlib": lambda: tfds.features.Tensor(shape=shape, dtype=np.float32, encoding="zlib"),
        "jpeg": lambda: tfds.features.Image(shape=(*shape, 3), encoding_format="jpeg"),
        "png": lambda: tfds.features.Image(shape=(*shape, 3), encoding_format="png"),
        "image": lambda: tfds.features.Image(shape=(*shape, 3)),
        "png16": lambda: tfds.features.Image(shape=(*shape, 1), dtype=np.uint16, encoding_format="png"),
        "float": lambda: tfds.features.Image(shape=(*shape, 1), dtype=np.float32),
    }[word]()


@cache
def image(mode: str, height: int, width: int, level: int, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), (level,) * 3 if mode == "RGB" else level).save(buffer, format=form)
    return buffer.getvalue()


def value(kind: Any, path: tuple[str, ...], rng: np.random.Generator, special: Callable[[tuple[str, ...]], Any]) -> Any:
    """A value of a kind; `special` knows what stands at some places, and returns None elsewhere."""
    if isinstance(kind, Mapping):
        return {key: value(inner, (*path, key), rng, special) for key, inner in kind.items()}
    word, shape = parse(kind)
    known = special(path)
    if word in ("jpeg", "image", "png"):
        level = 250 if known is None else known
        return image("RGB", *shape, level, "PNG" if word == "png" else "JPEG")
    if word == "png16":
        return image("I;16", *shape, 7, "PNG")
    if word == "float":
        return np.zeros((*shape, 1), np.float32)
    if word in ("str", "text"):
        return "something else" if known is None else known
    if path[-1] == "instruction":
        codes = np.frombuffer(known.encode(), np.uint8)
        return np.pad(codes.astype(np.int32), (0, shape[0] - len(codes)))
    if known is not None:
        return np.full(shape, known, NUMBERS[word])
    dtype = NUMBERS.get(word, np.float32)
    return rng.uniform(0, 2, shape).astype(dtype) if dtype != np.bool_ else rng.random(shape) < 0.5


def write_set(
    out: Path, source: OpenXSource, lengths: tuple[int, ...], *, kinds: Mapping[str, Any] | None = None
) -> None:
    """One episode for each length: the second has no words, the others have none on their first step."""
    kinds = schema(source.name) if kinds is None else kinds
    shape = {key: feature(kind) for key, kind in kinds.items() if key != "steps"}
    shape["steps"] = tfds.features.Dataset(feature(kinds["steps"]))

    def episode(number: int, length: int) -> dict[str, Any]:
        rng = np.random.default_rng([number, length])

        def step(index: int) -> Any:
            words = "" if number == 1 or (index == 0 and length > 1) else WORDS
            known = {
                ("observation", source.image_key): 5 + 5 * index,
                source.language_key: words,
                ("is_first",): index == 0,
                ("is_last",): index == length - 1,
                ("is_terminal",): index == length - 1,
            }
            return value(kinds["steps"], (), rng, known.get)

        rest = {key: value(kind, (key,), rng, {}.get) for key, kind in kinds.items() if key != "steps"}
        return {**rest, "steps": [step(index) for index in range(length)]}

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=source.name, version=tfds.core.Version(source.version), data_dir=str(out), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(shape), description="")
    info.set_file_format("tfrecord")
    writer = tfds.core.SequentialWriter(info, 2, overwrite=True)
    writer.initialize_splits(["train"], fail_if_exists=False)
    writer.add_examples({"train": [episode(*each) for each in enumerate(lengths)]})
    writer.close_all()


def spacing(source: OpenXSource) -> list[int]:
    """Where the five frames of a clip lie at 5 Hz, by hand: every (hz / 5)-th frame, slower sources frame by frame."""
    assert source.hz is not None
    return [math.floor(index * max(1.0, source.hz / TARGET_HZ) + 0.5) for index in range(5)]


# ----------------------------------------------------------------------------------------------------------- tests

FOREIGN = [source for source in all_sources() if source.hz is not None]


def test_every_source_has_a_schema() -> None:
    assert set(SCHEMAS) == {source.name for source in FOREIGN}


@pytest.mark.parametrize("source", FOREIGN, ids=lambda source: source.name)
def test_every_source_of_the_table_becomes_a_training_batch(source: OpenXSource, tmp_path: Path) -> None:
    offsets = spacing(source)
    lengths = (1, 3, offsets[-1] + 1 + offsets[1])  # long enough for two clips
    write_set(tmp_path, source, lengths)

    described = describe_rlds(tmp_path)
    assert (described.name, described.hz, described.language_key) == (source.name, source.hz, source.language_key)
    data = RldsSource(tmp_path)
    assert data.image_key == source.image_key
    assert [part.episodes for part in data.parts()] == [2, 1]
    episodes = [episode for part in range(2) for episode in data.read(part)]
    assert [len(episode) for episode in episodes] == list(lengths)
    assert [episode.instruction for episode in episodes] == [WORDS, "", WORDS]
    assert {episode.hz for episode in episodes} == {source.hz}
    size = parse(SCHEMAS[source.name]["observation"][source.image_key])[1]
    assert episodes[2].decode(2).shape == (*size, 3)
    assert np.abs(episodes[2].decode(2).astype(int) - 15).max() <= 1

    windows = WindowOptions(num_frames=5, target_hz=TARGET_HZ)
    with ClipStream([(data, 1.0)], StreamOptions(windows, height=24, width=32), seed=0, threads=0) as stream:
        batch = stream.batch(2)
    assert batch.pixels.shape == (2, 5, 24, 32, 3)
    assert batch.valid.tolist() == [[True]] * 2
    assert sorted(batch.start.tolist()) == [0, offsets[1]]  # the short episodes give no clip
    assert set(zip(batch.source, batch.episode_id, batch.instruction, strict=True)) == {
        (source.name, "train/000002", WORDS)
    }
    for pixels, start in zip(batch.pixels.astype(int), batch.start.tolist(), strict=True):
        levels = np.array([5 + 5 * (start + offset) for offset in offsets])
        assert np.abs(pixels - levels[:, None, None, None]).max() <= 1


@pytest.mark.parametrize("name", ["kuka", "language_table", "utaustin_mutex"])
def test_the_frame_cache_gives_the_same_clips_as_the_stream(name: str, tmp_path: Path) -> None:
    source = find_source(name)
    length = spacing(source)[-1] + 1  # room for one clip
    (folder := tmp_path / "set").mkdir()
    write_set(folder, source, (1, 3, length))
    data = RldsSource(folder)
    everything = (episode for part in range(len(data.parts())) for episode in data.read(part))
    cache_frames(everything, tmp_path / "cache", height=24, width=32, description={})
    stored = FrameCache(tmp_path / "cache")
    assert [(episode.length, episode.instruction) for episode in stored.episodes] == [
        (1, WORDS),
        (3, ""),
        (length, WORDS),
    ]
    clips = ClipSampler(stored, [0, 1, 2], num_frames=5, seed=0, target_hz=TARGET_HZ).batch(0, 2)
    options = StreamOptions(WindowOptions(num_frames=5, target_hz=TARGET_HZ), height=24, width=32)
    with ClipStream([(data, 1.0)], options, seed=0, threads=0) as stream:
        streamed = stream.batch(2)
    np.testing.assert_array_equal(clips.pixels, streamed.pixels)


def test_the_real_bridge_episodes_become_a_training_batch(shared_dir: Path) -> None:
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    data = RldsSource(folder, splits=("train", "val"))
    options = StreamOptions(WindowOptions(num_frames=5, gap_seconds=0.8), height=48, width=64)
    with ClipStream([(data, 1.0)], options, seed=0, threads=0) as stream:
        batch = stream.batch(16)
    assert batch.pixels.shape == (16, 5, 48, 64, 3)
    assert batch.valid.all()
    assert set(batch.instruction) <= {episode.instruction for part in range(2) for episode in data.read(part)}
    assert batch.pixels.std(axis=(2, 3, 4)).min() > 10


def test_two_versions_of_bridge_are_read_by_one_row(tmp_path: Path) -> None:
    """The bucket's newer copy has the schema of the project's own conversion under the old name."""
    newer = OpenXSource("bridge", "image_0", 5.0)
    write_set(tmp_path, newer, (1, 3), kinds=schema("bridge_dataset"))
    data = RldsSource(tmp_path)
    assert (data.image_key, data.language_key) == ("image_0", ("language_instruction",))
    assert [episode.instruction for episode in data.read(0)] == [WORDS, ""]


def test_images_stored_as_plain_numbers_and_a_missing_text_are_read(tmp_path: Path) -> None:
    source = OpenXSource("my_robot", "camera/front", 7.0, language_key=("spoken_words",))
    step = {**FLAGS, "action": "f32 7", "observation": {"camera/front": "u8 16x20x3"}, "spoken_words": "text"}
    write_set(tmp_path, source, (1, 3, 6), kinds={"steps": step})
    with pytest.raises(InputError, match="frame rate of 'my_robot' is not known"):
        RldsSource(tmp_path, image_key="camera/front")
    data = RldsSource(tmp_path, hz=7.0)  # the only image is taken, the text lies where nobody looks
    episodes = [episode for part in range(2) for episode in data.read(part)]
    assert [(len(episode), episode.instruction, episode.hz) for episode in episodes] == [
        (n, "", 7.0) for n in (1, 3, 6)
    ]
    assert episodes[2].decode(5).tolist() == np.full((16, 20, 3), 30).tolist()
    known = RldsSource(tmp_path, source=source)
    assert [episode.instruction for episode in known.read(0)] == [WORDS, ""]
