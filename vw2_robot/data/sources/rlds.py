"""RLDS data sets, on disk or in a bucket, as parts of compressed episodes.

The entrance of the flow: Open-X folders -> episodes -> clips. Folders are found and opened in `rlds_builder`. Images
stay JPEG/PNG bytes, and only the chosen camera, the words and the rate leave a record. A part is a file, read from
front to back. Interfaces specification: sections 9.1 to 9.4.

Episodes come in file order and are called `<split>/<position>`, the position in the whole split also where a slice of
it is read: an episode has one name, however it was asked for. What is needed of a set (image, words, rate) comes
from the arguments, then from the episode's own metadata, then from the table in `openx`, and is checked against the
features of the copy at hand.

Actions of foreign robots never enter an episode, so no step is left out: neither a first one with an empty action nor
the last one, whose action means nothing; their images are real. `read_numbers` reads them apart, for judging codes.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from ..episodes import Episode, Part, SkippedEpisodes
from ..step_names import STEPS
from .openx import OpenXSource, known_source
from .rlds_builder import (
    EPISODE,
    check_shapes,
    child,
    choose_image_key,
    entries,
    find_language_key,
    first_line,
    image_path,
    load_tensorflow,
    open_builder,
    step_features,
)

# T steps of an episode · H, W pixels


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
        image_key: which image of the observation; overrides the table.
        hz: frames per second; overrides the episode's metadata and the table.
        max_skipped: empty or unreadable episodes are named in the log, counted in `bad` and skipped; one more than this
            stops the run.

    Raises:
        InputError: at once for a wrong folder, split, image or rate.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        splits: Sequence[str] = ("train",),
        source: OpenXSource | None = None,
        image_key: str | None = None,
        hz: float | None = None,
        max_skipped: int = 10,
    ) -> None:
        builder, self.path = open_builder(path)
        self.name: str = builder.info.name
        source = source or known_source(self.name)
        self._pieces = tuple(piece for split in splits for piece in _pieces(builder, self.path, split))
        usual = source.image_keys if source is not None else ()
        self.image_key = choose_image_key(builder, self.path, (image_key,) if image_key is not None else usual)
        self._image_path = image_path(builder, self.path, self.image_key)
        self.language_key = find_language_key(builder, self.path, source)
        rate = hz if hz is not None else (source.hz if source is not None else None)
        stored = hz is None and child(child(builder.info.features, EPISODE), "hz") is not None
        if not stored and (rate is None or not 0 < rate < math.inf):
            raise InputError(
                f"{self.path}: the frame rate of {self.name!r} is not known (found {rate}); give hz, frames per second "
                "(data.hz=5)"
            )
        self.hz = None if stored or rate is None else float(rate)
        """frames per second; None where each episode carries its own"""
        self.skipped = SkippedEpisodes(max_skipped)
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
        """Yield the episodes of one file from number `start` on, images still compressed.

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
                self.skipped.add(error)
            except tf.errors.InvalidArgumentError as error:  # a sound record with other contents than announced
                self.skipped.add(
                    InputError(f"{self.path}, episode {name} is not as in features.json: {first_line(error)}")
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
        step, piece = step_features(open_builder(self.path)[0], self.path), self._pieces[part]
        for key in keys:
            if functools.reduce(child, key, step) is None:
                raise InputError(f"{self.path}: the steps of {self.name!r} have no {'/'.join(key)}")
        features = tfds.features.FeaturesDict({STEPS: tfds.features.Dataset(entries(step, keys))})
        check_shapes(features, self.path)
        records = self._records(piece, start)
        for number in range(start, piece.take):
            try:
                record = tf.constant(next(records))
                found = features.deserialize_example(record, decoders={STEPS: tfds.decode.SkipDecoding()})
            except (tf.errors.OpError, StopIteration) as error:
                raise _damaged(piece, number, error) from error
            values = (functools.reduce(lambda node, name: node[name], key, found[STEPS]).numpy() for key in keys)
            yield f"{piece.split}/{piece.first + number:06d}", tuple(values)

    def _examples(self, piece: _Piece, start: int) -> Iterator[Mapping[str, Any]]:
        """Parse nothing but the wanted fields of the records of one file; images and texts stay bytes."""
        if self._parse is None:
            self._parse = self._parser()
        return map(self._parse, self._records(piece, start))  # unlike a generator, goes on after a bad record

    def _records(self, piece: _Piece, start: int) -> Iterator[bytes]:
        tf, tfds = load_tensorflow()
        if not self._random_access:
            # Not tf.data: it takes 15 ms to open a file and never frees the graph that it makes for each.
            everything = map(tf.compat.v1.io.tf_record_iterator, [piece.file])  # opens it when the first is asked for
            records = itertools.chain.from_iterable(everything)
            checked = map(lambda _, record: record, _fitting_lengths(tf, piece.file), records)
            return itertools.islice(checked, piece.skip + start, piece.skip + piece.take)

        @functools.cache
        def source() -> Any:
            method = tfds.decode.DeserializeMethod.RAW_BYTES
            return open_builder(self.path)[0].as_data_source(split=piece.split, deserialize_method=method)

        def record(number: int) -> bytes:
            try:
                found: bytes = source()[piece.first + number]
            except (RuntimeError, ValueError, OSError) as error:
                raise tf.errors.DataLossError(None, None, str(error)) from error
            return found

        return map(record, range(start, piece.take))

    def _parser(self) -> Callable[[bytes], dict[str, Any]]:
        """Return the function record -> images, words, rate; made once, since tracing takes long."""
        tf, tfds = load_tensorflow()
        features = self._wanted_features(tfds, open_builder(self.path)[0])

        def parse(record: Any) -> dict[str, Any]:
            example = features.deserialize_example(record, decoders={STEPS: tfds.decode.SkipDecoding()})
            found = {"images": functools.reduce(lambda node, key: node[key], self._image_path, example[STEPS])}
            if self.language_key is not None:
                whole = example if self.language_key[0] == EPISODE else example[STEPS]
                found["text"] = functools.reduce(lambda node, key: node[key], self.language_key, whole)
            if self.hz is None:
                found["hz"] = example[EPISODE]["hz"]
            return found

        traced = tf.function(parse, input_signature=[tf.TensorSpec((), tf.string)])
        return lambda record: {key: value.numpy() for key, value in traced(tf.constant(record)).items()}

    def _wanted_features(self, tfds: ModuleType, builder: Any) -> Any:
        """Return the features with one camera, the words and the rate: other cameras are never copied."""
        whole, step = builder.info.features, step_features(builder, self.path)
        words = () if self.language_key is None else (self.language_key,)
        about = [path for path in words if path[0] == EPISODE]
        about += [(EPISODE, "hz")] if self.hz is None else []
        wanted = entries(step, (self._image_path, *(path for path in words if path[0] != EPISODE)))
        example: dict[str, Any] = {STEPS: tfds.features.Dataset(wanted), **entries(whole, about)}
        features = tfds.features.FeaturesDict(example)
        check_shapes(features, self.path)
        return features

    def _episode(self, name: str, example: Mapping[str, Any]) -> Episode:
        images = tuple(example["images"])
        try:
            hz = float(np.ravel(example["hz"])[0]) if self.hz is None else self.hz
        except (ValueError, TypeError, IndexError):  # a rate that is no number
            hz = math.nan
        if not images or not 0 < hz < math.inf:
            raise InputError(
                f"{self.name}, episode {name}: {len(images)} images at {hz} Hz; expected at least one, a rate > 0"
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
    max_skipped: int = 10,
) -> Iterator[Episode]:
    """Yield the episodes of one split in file order, from number `start` on; see `RldsSource` for the arguments."""
    data = RldsSource(path, splits=(split,), source=source, image_key=image_key, hz=hz, max_skipped=max_skipped)

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
        raise InputError(f"{folder} has no split {split!r} ({first_line(error)}); available: {available}") from error
    place: dict[str, tuple[str, int]] = {}  # of each file: its split, and the position of its first episode there
    for name, info in builder.info.splits.items():
        wholes = info.file_instructions if info.num_examples else []
        begins = itertools.accumulate((whole.examples_in_shard for whole in wholes), initial=0)
        place |= {whole.basename(): (name, begin) for whole, begin in zip(wholes, begins, strict=False)}
    for instruction in instructions:
        whole_split, first = place[instruction.basename()]
        file, skip = f"{folder}/{instruction.basename()}", int(instruction.skip)
        yield _Piece(whole_split, file, skip, instruction.take, instruction.examples_in_shard, first + skip)


def _fitting_lengths(tf: ModuleType, file: str) -> Iterator[int]:
    """Yield the length of each record of a TFRecord file, before TensorFlow reads it.

    TensorFlow makes room for what a length says, and ends the process where there is not so much memory.

    Raises:
        tf.errors.DataLossError: the record would end behind the file.
    """
    with tf.io.gfile.GFile(file, "rb") as stream:
        size, position = stream.size(), 0
        while len(header := stream.read(8)) == 8:
            length = int.from_bytes(header, "little")
            position += 16 + length  # itself, its checksum, the record, its checksum
            if position > size:
                raise tf.errors.DataLossError(None, None, f"a record of {length} bytes in a file of {size}")
            yield length
            stream.seek(position)
        if header:
            raise tf.errors.DataLossError(None, None, f"{len(header)} bytes behind the last record")


def _text(values: NDArray[Any] | bytes | None) -> str:
    """Return the first instruction that is not empty; integers are UTF-8 code points padded with zeros."""
    if values is None:
        return ""
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        rows = values.reshape(len(values), -1) if values.size else values
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
