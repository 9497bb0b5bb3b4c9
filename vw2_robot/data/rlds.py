"""RLDS data sets on disk as streams of episodes, and our episodes as RLDS data sets.

The entrance of the flow: Open-X folders -> episodes -> frame cache. TensorFlow and TFDS are imported here and nowhere
else, when a function is called; they see no GPU, so torch keeps it. A data set is opened from its folder
(`builder_from_directory`), never by name, so nothing touches the network. Pictures stay compressed: episodes come out
as JPEG/PNG bytes. Interfaces specification: sections 9.1 to 9.4.

Episodes come in file order and are called `<split>/<position>`. What is needed of a set (picture, words, rate) comes
from the arguments, then from the episode's own metadata, then from the table in `openx`, and is checked against the
features of the copy at hand.

Not here: actions of foreign robots. `write_rlds` stores the actions of our own demonstrations, for others to read.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError, require

from .episodes import Demonstration, Episode, encode_jpeg
from .openx import OBSERVATION_TEXT, STEP_TEXT, OpenXSource, known_source

# T steps of an episode · H, W pixels
_LOG = logging.getLogger(__name__)


@functools.cache
def _tensorflow() -> tuple[ModuleType, ModuleType]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")  # otherwise TFDS looks for a cloud machine's metadata server
    tf = require("tensorflow", extra="openx")
    tfds = require("tensorflow_datasets", extra="openx")
    tf.config.set_visible_devices([], "GPU")
    return tf, tfds


# --------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class RLDSDescription:
    """What lies in a folder: `splits` name -> episodes, `image_keys` name -> (H, W), `hz` as in the table or None."""

    path: str
    name: str
    version: str
    splits: dict[str, int]
    image_keys: dict[str, tuple[int | None, int | None]]
    language_key: tuple[str, ...] | None
    hz: float | None


def describe_rlds(path: str | os.PathLike[str]) -> RLDSDescription:
    """Open a data set folder and say what is in it, without reading an episode."""
    builder = _open(path)
    name = builder.info.name
    source = known_source(name)
    return RLDSDescription(
        path=str(builder.data_path),
        name=name,
        version=str(builder.info.version),
        splits={split: int(info.num_examples) for split, info in builder.info.splits.items()},
        image_keys=_image_keys(builder),
        language_key=_language_key(builder, source),
        hz=source.hz if source is not None else None,
    )


def read_rlds(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    source: OpenXSource | None = None,
    image_key: str | None = None,
    hz: float | None = None,
    start: int = 0,
    max_bad: int = 10,
) -> Iterator[Episode]:
    """Yield the episodes of one split in file order, pictures still compressed.

    Args:
        path: the folder with `dataset_info.json`, or one above it if it holds a single version.
        split: a name (`train`) or a TFDS slice of one (`train[:100]`).
        source: the row of the table; looked up by the set's own name if None.
        image_key: which picture of the observation; overrides the table.
        hz: frames per second; overrides the episode's metadata and the table.
        start: how many episodes to leave out at the beginning.
        max_bad: empty episodes are named in the log and skipped; one more than this stops the run.

    Raises:
        InputError: at once for a wrong folder, split, picture or rate; while iterating for a damaged file.
    """
    builder = _open(path)
    source = source or known_source(builder.info.name)
    total = _split_size(builder, split)
    key = _choose_image_key(builder, image_key or (source.image_key if source is not None else None))
    rate = hz if hz is not None else (source.hz if source is not None else None)
    stored_hz = hz is None and _child(_child(builder.info.features, "episode_metadata"), "hz") is not None
    if not stored_hz and (rate is None or not rate > 0):
        raise InputError(
            f"{builder.data_path}: the frame rate of {builder.info.name!r} is not known (found {rate}); give hz, "
            "frames per second"
        )
    wanted = _Wanted(
        image_key=key,
        language_key=_language_key(builder, source),
        hz=None if stored_hz or rate is None else float(rate),
    )
    return _episodes(builder, split, wanted, start=start, total=total, max_bad=max_bad)


@dataclass(frozen=True)
class _Wanted:
    image_key: str
    language_key: tuple[str, ...] | None
    hz: float | None  # None: stored with each episode


def _episodes(builder: Any, split: str, wanted: _Wanted, *, start: int, total: int, max_bad: int) -> Iterator[Episode]:
    tf, tfds = _tensorflow()
    if start >= total:
        return
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True, shuffle_seed=0)
    plain = split in builder.info.splits
    dataset = builder.as_dataset(
        split=f"{split}[{start}:]" if plain and start else split,
        decoders={"steps": tfds.decode.SkipDecoding()},
        shuffle_files=False,
        read_config=config,
    )
    dataset = dataset if plain else dataset.skip(start)

    def needed_only(example: Any) -> dict[str, Any]:
        steps = example["steps"]
        found = {"images": steps["observation"][wanted.image_key], "steps": tf.shape(steps["is_first"])[0]}
        if wanted.language_key is not None:
            found["text"] = functools.reduce(lambda node, key: node[key], wanted.language_key, steps)
        if wanted.hz is None:
            found["hz"] = example["episode_metadata"]["hz"]
        return found

    stream = dataset.map(needed_only).prefetch(2).as_numpy_iterator()
    bad = 0
    for position in range(start, total):
        try:
            example = next(stream)
        except (tf.errors.OpError, StopIteration) as error:
            raise _damaged(builder, split, position, error) from error
        name = f"{split}/{position:06d}"
        try:
            yield _episode(builder.info.name, name, example, wanted)
        except InputError as error:
            bad += 1
            if bad > max_bad:
                raise InputError(
                    f"too many unusable episodes: {bad} where {max_bad} were allowed; the last: {error}"
                ) from error
            _LOG.warning("episode skipped: %s", error)


def _episode(source: str, name: str, example: Mapping[str, Any], wanted: _Wanted) -> Episode:
    images = tuple(example["images"])
    hz = float(np.ravel(example["hz"])[0]) if wanted.hz is None else wanted.hz
    if not images or not hz > 0:
        raise InputError(
            f"{source}, episode {name}: {len(images)} pictures at {hz} Hz; expected at least one, a rate > 0"
        )
    return Episode(source=source, episode_id=name, instruction=_text(example.get("text")), hz=hz, images=images)


def _text(values: NDArray[Any] | None) -> str:
    """Return the first instruction that is not empty; integers are UTF-8 code points padded with zeros."""
    if values is None:
        return ""
    if values.dtype.kind in "iu":
        rows = values.reshape(len(values), -1)
        texts = (bytes(row[row > 0].astype(np.uint8)) for row in rows)
    else:
        texts = (bytes(value) for value in values.ravel())
    return next((text.decode("utf-8", errors="replace").strip() for text in texts if text.strip()), "")


def _open(path: str | os.PathLike[str]) -> Any:
    _, tfds = _tensorflow()
    folder = os.fspath(path) if "://" in os.fspath(path) else str(_version_folder(Path(path)))
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # a broken description raises a dozen types inside TFDS, json and protobuf
        raise InputError(
            f"{folder} cannot be opened as a TFDS data set ({type(error).__name__}: {_first_line(error)}); its "
            "dataset_info.json or features.json is damaged: copy them again"
        ) from error


def _version_folder(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"there is no folder {path}; expected an RLDS data set such as .../bridge_dataset/1.0.0")
    if not path.is_dir():
        raise InputError(f"{path} is a file; expected the folder of an RLDS data set, with dataset_info.json in it")
    if (path / "dataset_info.json").is_file():
        if not (path / "features.json").is_file():
            raise InputError(f"{path} has no features.json beside its dataset_info.json: copy the data set again")
        return path
    found = sorted(file.parent for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/dataset_info.json"))
    if len(found) == 1:
        return found[0]
    inside = ", ".join(str(folder.relative_to(path)) for folder in found[:8])
    what = f"holds {len(found)} data sets ({inside}): name one of them" if found else "is no TFDS data set"
    raise InputError(f"{path} {what}; expected a folder with dataset_info.json, features.json and the shards")


def _split_size(builder: Any, split: str) -> int:
    splits = {name: int(info.num_examples) for name, info in builder.info.splits.items()}
    try:
        return int(builder.info.splits[split].num_examples)
    except (KeyError, ValueError) as error:
        available = ", ".join(f"{name} ({count} episodes)" for name, count in splits.items()) or "none"
        raise InputError(
            f"{builder.data_path} has no split {split!r} ({_first_line(error)}); available: {available}"
        ) from error


def _child(features: Any, key: str) -> Any:
    """Return one entry of a TFDS features dict, None if it is absent or `features` is no dict."""
    return features[key] if hasattr(features, "keys") and key in features else None


def _step_features(builder: Any) -> Any:
    features = builder.info.features
    step = getattr(_child(features, "steps"), "feature", None)
    if not hasattr(_child(step, "observation"), "items"):
        raise InputError(
            f"{builder.data_path} is a TFDS data set but not in RLDS form: expected steps with an observation, found "
            f"{sorted(features) if hasattr(features, 'keys') else features}"
        )
    return step


def _image_keys(builder: Any) -> dict[str, tuple[int | None, int | None]]:
    """Return picture name -> (H, W) for everything in the observation that is RGB; None where the size varies."""
    return {
        key: (feature.shape[0], feature.shape[1])
        for key, feature in sorted(_step_features(builder)["observation"].items())
        if len(feature.shape or ()) == 3 and feature.shape[2] == 3 and feature.np_dtype == np.uint8
    }


def _choose_image_key(builder: Any, key: str | None) -> str:
    available = _image_keys(builder)
    if key in available:
        return str(key)
    if key is None and len(available) == 1:
        return next(iter(available))
    sizes = ", ".join(f"{name} {height or '?'}x{width or '?'}" for name, (height, width) in available.items()) or "none"
    asked = f"has no picture {key!r}" if key is not None else f"is no known source and holds {len(available)} pictures"
    raise InputError(f"{builder.data_path} {asked}; set image_key to one of: {sizes}")


def _language_key(builder: Any, source: OpenXSource | None) -> tuple[str, ...] | None:
    candidates: tuple[tuple[str, ...], ...] = (
        *((source.language_key,) if source is not None else ()),
        STEP_TEXT,
        OBSERVATION_TEXT,
    )
    for path in candidates:
        node = _step_features(builder)
        for key in path:
            node = _child(node, key)
        if node is not None:
            return path
    return None


def _damaged(builder: Any, split: str, position: int, error: Exception) -> InputError:
    """Say which shard is missing, cut off or corrupted, by reading the split's files once more, one by one."""
    tf, _ = _tensorflow()
    base_split = builder.info.splits[re.split(r"[\[+]", split)[0].strip()]
    advice = "copy or download the file again, or use a slice of the split that leaves it out"
    if builder.info.file_format is not None and builder.info.file_format.value == "tfrecord":
        for file, expected in zip(base_split.filepaths, base_split.shard_lengths, strict=True):
            count = 0
            try:
                for _ in tf.data.TFRecordDataset(str(file)):
                    count += 1
            except tf.errors.OpError as shard_error:
                reason = type(shard_error).__name__
                return InputError(f"{file} is damaged after {count} of {expected} episodes ({reason}); {advice}")
            if count != expected:
                return InputError(f"{file} holds {count} episodes, dataset_info.json says {expected}; {advice}")
    return InputError(
        f"{builder.data_path}, split {split}, episode {position} cannot be read ({_first_line(error)}); {advice}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


# --------------------------------------------------------------------------------------------------------- writing


def write_rlds(
    out: Path,
    *,
    name: str,
    version: str,
    episodes: Mapping[str, Iterable[Demonstration]],
    description: str = "",
    max_episodes_per_shard: int = 100,
) -> None:
    """Write demonstrations as a TFDS data set that `tfds.builder_from_directory(out)` opens.

    Steps hold `observation/image` (JPEG), `action` float32 [7], `language_instruction`, `reward` (1 on the last step of
    a terminal episode), `discount`, `is_first`, `is_last`, `is_terminal`; episodes hold `episode_id` and `hz`. Where an
    episode has one action fewer than pictures, the last step's action is zero. `out` appears when it is complete.

    Args:
        out: the new folder, by custom `<name>/<version>`.
        name: of the data set, lower case with underscores.
        version: three numbers, `1.0.0`.
        episodes: split name -> episodes, consumed one by one; all pictures have one size.
        description: free words about the origin.
        max_episodes_per_shard: episodes in one file.

    Raises:
        InputError: a bad name, an existing folder, no episode, or pictures of different sizes.
    """
    tf, tfds = _tensorflow()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise InputError(f"a data set needs a name like vw2_kuka and a version like 1.0.0, found {name!r}, {version!r}")
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder or delete it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        writer: Any = None
        size: tuple[int, ...] | None = None
        for split, demonstrations in episodes.items():
            for demonstration in demonstrations:
                if writer is None:
                    size = demonstration.episode.decode(0).shape
                    writer = _writer(tf, tfds, temporary, name, version, size, description, max_episodes_per_shard)
                    writer.initialize_splits(list(episodes), fail_if_exists=False)
                writer.add_examples({split: [_example(demonstration, size)]})
        if writer is None:
            raise InputError(f"no episode to write to {out}")
        writer.close_all()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _writer(
    tf: ModuleType,
    tfds: ModuleType,
    folder: Path,
    name: str,
    version: str,
    size: tuple[int, ...],
    description: str,
    max_episodes_per_shard: int,
) -> Any:
    features = tfds.features
    step = {
        "observation": {"image": features.Image(shape=size, encoding_format="jpeg")},
        "action": features.Tensor(shape=(ACTION_DIM,), dtype=np.float32),
        "language_instruction": features.Text(),
        "reward": features.Scalar(dtype=np.float32),
        "discount": features.Scalar(dtype=np.float32),
        "is_first": features.Scalar(dtype=np.bool_),
        "is_last": features.Scalar(dtype=np.bool_),
        "is_terminal": features.Scalar(dtype=np.bool_),
    }
    episode = {
        "steps": features.Dataset(step),
        "episode_metadata": {"episode_id": features.Text(), "hz": features.Scalar(dtype=np.float64)},
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=features.FeaturesDict(episode))
    info.set_file_format("tfrecord")
    return tfds.core.SequentialWriter(info, max_episodes_per_shard, overwrite=True)


def _example(demonstration: Demonstration, size: tuple[int, ...] | None) -> dict[str, Any]:
    episode, actions = demonstration.episode, demonstration.actions.astype(np.float32)
    steps = []
    for index in range(len(episode)):
        pixels = episode.decode(index)
        if pixels.shape != size:
            raise InputError(
                f"{episode.source}, episode {episode.episode_id}, frame {index}: {pixels.shape}, the set has {size}"
            )
        stored = episode.images[index]
        is_last = index == len(episode) - 1
        steps.append(
            {
                "observation": {"image": stored if _is_jpeg(stored) else encode_jpeg(pixels)},
                "action": actions[index] if index < len(actions) else np.zeros(ACTION_DIM, np.float32),
                "language_instruction": episode.instruction,
                "reward": np.float32(is_last and demonstration.terminal),
                "discount": np.float32(not (is_last and demonstration.terminal)),
                "is_first": index == 0,
                "is_last": is_last,
                "is_terminal": is_last and demonstration.terminal,
            }
        )
    return {"steps": steps, "episode_metadata": {"episode_id": episode.episode_id, "hz": np.float64(episode.hz)}}


def _is_jpeg(image: bytes | NDArray[np.uint8]) -> bool:
    return isinstance(image, bytes) and image.startswith(b"\xff\xd8")
