"""RLDS data sets, on disk or in a bucket, as parts of compressed episodes.

The entrance of the flow: Open-X folders -> episodes -> clips. TensorFlow and TFDS are imported here and nowhere else,
when a function is called; they see no GPU, so torch keeps it. A data set is opened from its folder
(`builder_from_directory`), never by name, so nothing touches the network unless the path says so (`gs://...`). Pictures
stay JPEG/PNG bytes, and only the chosen camera, the words and the rate leave a record. A part is a file, read from
front to back. Interfaces specification: sections 9.1 to 9.4.

Episodes come in file order and are called `<split>/<position>`, the position in the whole split also where a slice of
it is read: an episode has one name, however it was asked for. What is needed of a set (picture, words, rate) comes
from the arguments, then from the episode's own metadata, then from the table in `openx`, and is checked against the
features of the copy at hand.

Actions of foreign robots never enter an episode, so no step is left out: neither a first one with an empty action nor
the last one, whose action means nothing; their pictures are real. `read_numbers` reads them apart, for judging codes.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require

from .episodes import BadEpisodes, Episode, Part
from .openx import OBSERVATION_TEXT, STEP_TEXT, OpenXSource, known_source

# T steps of an episode · H, W pixels


@functools.cache
def load_tensorflow() -> tuple[ModuleType, ModuleType]:
    """Import TensorFlow and TFDS, quiet and without a GPU."""
    tfds = _load_tfds()
    tf = require("tensorflow", extra="openx")
    tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")  # the reader of record files is called deprecated since 2.0, and is in 2.15
    return tf, tfds


def _load_tfds() -> ModuleType:
    """Import TFDS alone: it opens a local data set without TensorFlow, which costs half a gigabyte and seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")  # otherwise TFDS looks for a cloud machine's metadata server
    if importlib.util.find_spec("tensorflow") is None:
        require("tensorflow", extra="openx")  # say so now, not when the first episode is read
    return require("tensorflow_datasets", extra="openx")


# ----------------------------------------------------------------------------------------------------- description


@dataclass(frozen=True)
class RLDSDescription:
    """What lies in a folder: `splits` name -> episodes, `image_keys` name -> (H, W), `hz` as in the table or None."""

    path: str
    name: str
    version: str
    splits: dict[str, int]
    num_bytes: int
    image_keys: dict[str, tuple[int | None, int | None]]
    language_key: tuple[str, ...] | None
    hz: float | None


def describe_rlds(path: str | os.PathLike[str]) -> RLDSDescription:
    """Open a data set folder and say what is in it, without reading an episode."""
    builder, folder = _open(path)
    name = builder.info.name
    source = known_source(name)
    return RLDSDescription(
        path=folder,
        name=name,
        version=str(builder.info.version),
        splits={split: int(info.num_examples) for split, info in builder.info.splits.items()},
        num_bytes=sum(int(info.num_bytes) for info in builder.info.splits.values()),
        image_keys=_image_keys(builder, folder),
        language_key=_language_key(builder, folder, source),
        hz=source.hz if source is not None else None,
    )


# --------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Piece:
    """Episodes `skip` to `skip + take` of one file; `first` is the position of the first of them in the whole split."""

    split: str
    file: str
    skip: int
    take: int
    in_file: int
    first: int

    @property
    def name(self) -> str:
        """Return the split and the file, with the slice of it where it is not read as a whole."""
        cut = f"[{self.skip}:{self.skip + self.take}]" if self.take < self.in_file else ""
        return f"{self.split}/{self.file.rpartition('/')[2]}{cut}"


class RldsSource:
    """An RLDS data set as an `EpisodeSource`: a part is a shard (or the piece of one that a slice leaves).

    Opening reads two small json files, in a local folder without TensorFlow. Pickled, it is paths and numbers.

    Args:
        path: the folder with `dataset_info.json`, or one above it if it holds a single version; may be `gs://...`.
        splits: names (`train`) or TFDS slices (`train[:100]`).
        source: the row of the table; looked up by the set's own name if None.
        image_key: which picture of the observation; overrides the table.
        hz: frames per second; overrides the episode's metadata and the table.
        max_bad: empty or unreadable episodes are named in the log, counted in `bad` and skipped; one more than this
            stops the run.

    Raises:
        InputError: at once for a wrong folder, split, picture or rate.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        splits: Sequence[str] = ("train",),
        source: OpenXSource | None = None,
        image_key: str | None = None,
        hz: float | None = None,
        max_bad: int = 10,
    ) -> None:
        builder, self.path = _open(path)
        self.name: str = builder.info.name
        source = source or known_source(self.name)
        self._pieces = tuple(piece for split in splits for piece in _pieces(builder, self.path, split))
        usual = source.image_keys if source is not None else ()
        self.image_key = _choose_image_key(builder, self.path, (image_key,) if image_key is not None else usual)
        self.language_key = _language_key(builder, self.path, source)
        rate = hz if hz is not None else (source.hz if source is not None else None)
        stored = hz is None and _child(_child(builder.info.features, "episode_metadata"), "hz") is not None
        if not stored and (rate is None or not 0 < rate < math.inf):
            raise InputError(
                f"{self.path}: the frame rate of {self.name!r} is not known (found {rate}); give hz, frames per second"
            )
        self.hz = None if stored or rate is None else float(rate)
        """frames per second; None where each episode carries its own"""
        self.bad = BadEpisodes(max_bad)
        self._random_access = builder.info.file_format.value == "array_record"
        if self._random_access and "://" in self.path:
            raise InputError(f"{self.path} holds array_record files, which are read from disk only: copy the data set")
        self._parse: Callable[[bytes], dict[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parse": None}  # made again where it is used

    def parts(self) -> Sequence[Part]:
        """All files in the order of splits and shards."""
        return [Part(piece.name, piece.take) for piece in self._pieces]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one file from number `start` on, pictures still compressed.

        Raises:
            InputError: the file is missing, cut off or corrupted, or too many of its episodes are unusable.
        """
        tf, _ = load_tensorflow()
        piece = self._pieces[part]
        stream = self._examples(piece, start)
        for number in range(start, piece.take):
            name = f"{piece.split}/{piece.first + number:06d}"
            try:
                episode = self._episode(name, next(stream))
            except InputError as error:
                self.bad.add(error)
            except tf.errors.InvalidArgumentError as error:  # a sound record with other contents than announced
                self.bad.add(
                    InputError(f"{self.path}, episode {name} is not as in features.json: {_first_line(error)}")
                )
            except (tf.errors.OpError, StopIteration) as error:
                raise _damaged(piece, number, error) from error
            else:
                yield episode

    def read_numbers(
        self, part: int, keys: Sequence[tuple[str, ...]], *, start: int = 0
    ) -> Iterator[tuple[str, tuple[NDArray[Any], ...]]]:
        """Yield episode by episode its name and what lies at `keys` in its steps, such as `("action",)`: each [T, ...].

        For files that `read` has found sound; names and order are its own, unusable episodes come, too.

        Raises:
            InputError: the steps have no such entry.
        """
        tf, tfds = load_tensorflow()
        step, piece = _step_features(_open(self.path)[0], self.path), self._pieces[part]
        for key in keys:
            if functools.reduce(_child, key, step) is None:
                raise InputError(f"{self.path}: the steps of {self.name!r} have no {'/'.join(key)}")
        features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(_entries(step, keys))})
        for number, record in enumerate(self._records(piece, start), start):
            found = features.deserialize_example(tf.constant(record), decoders={"steps": tfds.decode.SkipDecoding()})
            values = (functools.reduce(lambda node, name: node[name], key, found["steps"]).numpy() for key in keys)
            yield f"{piece.split}/{piece.first + number:06d}", tuple(values)

    def _examples(self, piece: _Piece, start: int) -> Iterator[Mapping[str, Any]]:
        """Parse nothing but the wanted fields of the records of one file; pictures and texts stay bytes."""
        if self._parse is None:
            self._parse = self._parser()
        return map(self._parse, self._records(piece, start))  # unlike a generator, goes on after a bad record

    def _records(self, piece: _Piece, start: int) -> Iterator[bytes]:
        tf, tfds = load_tensorflow()
        if not self._random_access:
            # Not tf.data: it takes 15 ms to open a file and never frees the graph that it makes for each.
            everything = map(tf.compat.v1.io.tf_record_iterator, [piece.file])  # opens it when the first is asked for
            return itertools.islice(
                itertools.chain.from_iterable(everything), piece.skip + start, piece.skip + piece.take
            )

        @functools.cache
        def source() -> Any:
            method = tfds.decode.DeserializeMethod.RAW_BYTES
            return _open(self.path)[0].as_data_source(split=piece.split, deserialize_method=method)

        def record(number: int) -> bytes:
            try:
                found: bytes = source()[piece.first + number]
            except (RuntimeError, ValueError, OSError) as error:
                raise tf.errors.DataLossError(None, None, str(error)) from error
            return found

        return map(record, range(start, piece.take))

    def _parser(self) -> Callable[[bytes], dict[str, Any]]:
        """Return the function record -> pictures, words, rate; made once, since tracing takes long."""
        tf, tfds = load_tensorflow()
        features = self._wanted_features(tfds, _open(self.path)[0])

        def parse(record: Any) -> dict[str, Any]:
            example = features.deserialize_example(record, decoders={"steps": tfds.decode.SkipDecoding()})
            found = {"images": example["steps"]["observation"][self.image_key]}
            if self.language_key is not None:
                found["text"] = functools.reduce(lambda node, key: node[key], self.language_key, example["steps"])
            if self.hz is None:
                found["hz"] = example["episode_metadata"]["hz"]
            return found

        traced = tf.function(parse, input_signature=[tf.TensorSpec((), tf.string)])
        return lambda record: {key: value.numpy() for key, value in traced(tf.constant(record)).items()}

    def _wanted_features(self, tfds: ModuleType, builder: Any) -> Any:
        """Return the features with one camera, the words and the rate: other cameras are never copied."""
        whole, step = builder.info.features, _step_features(builder, self.path)
        words = () if self.language_key is None else (self.language_key,)
        wanted = _entries(step, (("observation", self.image_key), *words))
        example: dict[str, Any] = {"steps": tfds.features.Dataset(wanted)}
        if self.hz is None:
            example["episode_metadata"] = {"hz": whole["episode_metadata"]["hz"]}
        return tfds.features.FeaturesDict(example)

    def _episode(self, name: str, example: Mapping[str, Any]) -> Episode:
        images = tuple(example["images"])
        hz = float(np.ravel(example["hz"])[0]) if self.hz is None else self.hz
        if not images or not 0 < hz < math.inf:
            raise InputError(
                f"{self.name}, episode {name}: {len(images)} pictures at {hz} Hz; expected at least one, a rate > 0"
            )
        return Episode(source=self.name, episode_id=name, instruction=_text(example.get("text")), hz=hz, images=images)


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
    """Yield the episodes of one split in file order, from number `start` on; see `RldsSource` for the arguments."""
    data = RldsSource(path, splits=(split,), source=source, image_key=image_key, hz=hz, max_bad=max_bad)

    def episodes() -> Iterator[Episode]:
        skip = start
        for number, part in enumerate(data.parts()):
            count = part.episodes or 0
            if skip < count:
                yield from data.read(number, start=skip)
            skip = max(0, skip - count)

    return episodes()


def _pieces(builder: Any, folder: str, split: str) -> Iterator[_Piece]:
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        splits = ((name, info.num_examples) for name, info in builder.info.splits.items())
        available = ", ".join(f"{name} ({count} episodes)" for name, count in splits) or "none"
        raise InputError(f"{folder} has no split {split!r} ({_first_line(error)}); available: {available}") from error
    place: dict[str, tuple[str, int]] = {}  # of each file: its split, and the position of its first episode there
    for name, info in builder.info.splits.items():
        wholes = info.file_instructions if info.num_examples else []
        begins = itertools.accumulate((whole.examples_in_shard for whole in wholes), initial=0)
        place |= {whole.basename(): (name, begin) for whole, begin in zip(wholes, begins, strict=False)}
    for instruction in instructions:
        whole_split, first = place[instruction.basename()]
        file, skip = f"{folder}/{instruction.basename()}", int(instruction.skip)
        yield _Piece(whole_split, file, skip, instruction.take, instruction.examples_in_shard, first + skip)


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


def _damaged(piece: _Piece, number: int, error: Exception) -> InputError:
    advice = "copy or download the file again, or use a slice of the split that leaves it out"
    found = piece.skip + number
    if isinstance(error, StopIteration):
        return InputError(
            f"{piece.file} holds no more than {found} episodes, dataset_info.json says {piece.in_file}; {advice}"
        )
    reason = type(error).__name__
    return InputError(f"{piece.file} is damaged after {found} of {piece.in_file} episodes ({reason}); {advice}")


# --------------------------------------------------------------------------------------------- opening and checking


def _open(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the TFDS builder of a data set and the folder that holds its files."""
    tfds = _load_tfds()
    folder = _version_folder(os.fspath(path).rstrip("/") or "/")
    try:
        return (_open_remote(tfds, folder) if "://" in folder else tfds.builder_from_directory(folder)), folder
    except Exception as error:  # a broken description raises a dozen types inside TFDS, json and protobuf
        raise InputError(
            f"{folder} cannot be opened as a TFDS data set ({type(error).__name__}: {_first_line(error)}); its "
            "dataset_info.json or features.json is damaged: copy them again"
        ) from error


def _open_remote(tfds: ModuleType, folder: str) -> Any:
    """Open a copy of the description: TFDS by itself knows fewer kinds of paths than TensorFlow."""
    files = load_tensorflow()[0].io.gfile
    with tempfile.TemporaryDirectory() as local:
        for name in ("dataset_info.json", "features.json"):
            files.copy(f"{folder}/{name}", f"{local}/{name}")
        return tfds.builder_from_directory(local)


def list_files(folder: str, pattern: str) -> list[str]:
    """Return the paths below a folder that match, sorted; `gs://...` and its like go through TensorFlow."""
    if "://" not in folder:
        return sorted(map(str, Path(folder).glob(pattern)))
    tf, _ = load_tensorflow()
    try:
        return sorted(tf.io.gfile.glob(f"{folder}/{pattern}"))
    except tf.errors.NotFoundError:
        return []
    except tf.errors.OpError as error:
        raise InputError(
            f"{folder} cannot be reached ({type(error).__name__}: {_first_line(error)}); check the name, the network "
            "and your credentials"
        ) from error


def _version_folder(path: str) -> str:
    if "://" not in path:
        path = str(Path(path))
        if not Path(path).is_dir():
            what = f"{path} is a file" if Path(path).exists() else f"there is no folder {path}"
            raise InputError(f"{what}; expected the folder of an RLDS data set such as .../bridge_dataset/1.0.0")
    found = [
        file.rpartition("/")[0]
        for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
        for file in list_files(path, pattern)
    ]
    folder = _single(path, found)
    if not list_files(folder, "features.json"):
        raise InputError(f"{folder} has no features.json beside its dataset_info.json: copy the data set again")
    return folder


def _single(path: str, found: list[str]) -> str:
    """Return the data set that lies in `path` itself, or the only one that lies below."""
    if found and (found[0] == path or len(found) == 1):
        return found[0]
    inside = ", ".join(folder.removeprefix(path).strip("/") for folder in found[:8])
    what = f"holds {len(found)} data sets ({inside}): name one of them" if found else "is no TFDS data set"
    raise InputError(f"{path} {what}; expected a folder with dataset_info.json, features.json and the shards")


def _child(features: Any, key: str) -> Any:
    """Return one entry of a TFDS features dict, None if it is absent or `features` is no dict."""
    return features[key] if hasattr(features, "keys") and key in features else None


def _step_features(builder: Any, folder: str) -> Any:
    features = builder.info.features
    step = getattr(_child(features, "steps"), "feature", None)
    if not hasattr(_child(step, "observation"), "items"):
        raise InputError(
            f"{folder} is a TFDS data set but not in RLDS form: expected steps with an observation, found "
            f"{sorted(features) if hasattr(features, 'keys') else features}"
        )
    return step


def _entries(step: Any, keys: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Return the features of a step at these places alone, nested as they were."""
    wanted: dict[str, Any] = {}
    for *above, last in keys:
        place = functools.reduce(lambda node, key: node.setdefault(key, {}), above, wanted)
        place[last] = functools.reduce(lambda node, key: node[key], (*above, last), step)
    return wanted


def _image_keys(builder: Any, folder: str) -> dict[str, tuple[int | None, int | None]]:
    """Return picture name -> (H, W) for everything in the observation that is RGB; None where the size varies."""
    return {
        key: (feature.shape[0], feature.shape[1])
        for key, feature in sorted(_step_features(builder, folder)["observation"].items())
        if len(feature.shape or ()) == 3 and feature.shape[2] == 3 and feature.np_dtype == np.uint8
    }


def _choose_image_key(builder: Any, folder: str, keys: Sequence[str]) -> str:
    """Return the first of `keys` that the set has; without keys, its only picture."""
    available = _image_keys(builder, folder)
    for key in keys or (list(available) if len(available) == 1 else ()):
        if key in available:
            return key
    sizes = ", ".join(f"{name} {height or '?'}x{width or '?'}" for name, (height, width) in available.items()) or "none"
    asked = f"has no picture {keys[0]!r}" if keys else f"is no known source and holds {len(available)} pictures"
    raise InputError(f"{folder} {asked}; set image_key to one of: {sizes}")


def _language_key(builder: Any, folder: str, source: OpenXSource | None) -> tuple[str, ...] | None:
    candidates: tuple[tuple[str, ...], ...] = (
        *((source.language_key,) if source is not None else ()),
        STEP_TEXT,
        OBSERVATION_TEXT,
    )
    for path in candidates:
        node = _step_features(builder, folder)
        for key in path:
            node = _child(node, key)
        if node is not None:
            return path
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
