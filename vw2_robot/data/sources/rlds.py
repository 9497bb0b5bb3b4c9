"""Reader of RLDS data sets, on disk or in a bucket, as an `EpisodeSource` of compressed episodes.

It is the first step of the flow: Open-X folders -> episodes -> clips. `rlds_builder` finds and opens folders. Images
stay JPEG/PNG bytes, and only the chosen camera, the instruction and the frame rate are read from a record. A part is a
file, read from front to back.

Episodes come in file order and are called `<split>/<position>`. The position counts in the whole split, also where only
a slice of it is read, so the name of an episode does not depend on the slice. Image, instruction and rate of a data set
come from the arguments, then from the episode's own metadata, then from the table in `openx`, and are checked against
the features of this copy.

Actions of other robots never enter an episode, so every step is used: also a first one with an empty action and the
last one, whose action means nothing, since their images are real. `read_numbers` reads actions separately, to evaluate
codes.
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
class _ShardSlice:
    """Episodes `skip` to `skip + take` of one file; `first` is the position of the first of them in the whole split."""

    split: str
    file: str
    skip: int
    take: int
    in_file: int
    """how many episodes the whole file holds"""
    first: int

    @property
    def name(self) -> str:
        """Return the split and the file, with the slice if the file is not read as a whole."""
        cut = f"[{self.skip}:{self.skip + self.take}]" if self.take < self.in_file else ""
        return f"{self.split}/{self.file.rpartition('/')[2]}{cut}"


class RldsSource:
    """An RLDS data set as an `EpisodeSource`; a part is a shard, or the slice of one.

    Opening reads two small json files, in a local folder without TensorFlow. A pickled source holds paths and numbers
    only.

    Args:
        path: the folder with `dataset_info.json`, or one above it if it holds a single version; may be `gs://...`.
        splits: names (`train`) or TFDS slices (`train[:100]`).
        source: the row of the Open-X table; looked up by the name of the data set if None.
        image_key: which image of the observation; overrides the table.
        hz: frames per second; overrides the episode's metadata and the table.
        max_skipped: empty or unreadable episodes are named in the log, counted in `skipped` and left out; one more than
            this stops the run.

    Raises:
        InputError: folder, split, image or rate is wrong.
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
        # The builder is not kept, so that a pickled source is paths and numbers; opening it again is cheap.
        builder, self.path = open_builder(path)
        self.name: str = builder.info.name
        source = source or known_source(self.name)
        self._shards = tuple(shard for split in splits for shard in _shard_slices(builder, self.path, split))
        usual = source.image_keys if source is not None else ()
        self.image_key = choose_image_key(builder, self.path, (image_key,) if image_key is not None else usual)
        self._image_path = image_path(builder, self.path, self.image_key)
        self.language_key = find_language_key(builder, self.path, source)
        # An explicit rate wins, then the one stored in each episode, then the table.
        rate = hz if hz is not None else (source.hz if source is not None else None)
        stored = hz is None and child(child(builder.info.features, EPISODE), "hz") is not None
        if not stored and (rate is None or not 0 < rate < math.inf):
            raise InputError(
                f"{self.path}: the frame rate of {self.name!r} is not known (found {rate}); give hz, frames per second "
                "(data.hz=5)"
            )
        self.hz = None if stored or rate is None else float(rate)
        """frames per second; None where each episode stores its own"""
        self.skipped = SkippedEpisodes(max_skipped)
        self._random_access = builder.info.file_format.value == "array_record"
        if self._random_access and "://" in self.path:
            raise InputError(f"{self.path} holds array_record files, which are read from disk only: copy the data set")
        self._parse: Callable[[bytes], dict[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parse": None}  # a TensorFlow function cannot be pickled; it is made again

    def parts(self) -> Sequence[Part]:
        """All files in the order of splits and shards."""
        return [Part(shard.name, shard.take) for shard in self._shards]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one file from number `start` on, images still compressed.

        Raises:
            InputError: the file is missing, cut off or corrupted, or too many of its episodes are unusable.
        """
        tf, _ = load_tensorflow()
        shard = self._shards[part]
        if self._parse is None:
            self._parse = self._parser()
        stream = map(self._parse, self._records(shard, start))  # unlike a generator, continues after a damaged record
        for number in range(start, shard.take):
            name = f"{shard.split}/{shard.first + number:06d}"
            try:
                episode = self._episode(name, next(stream))
            except InputError as error:
                self.skipped.add(error)
            except tf.errors.InvalidArgumentError as error:  # an intact record whose content does not fit the features
                self.skipped.add(
                    InputError(f"{self.path}, episode {name} is not as in features.json: {first_line(error)}")
                )
            except (tf.errors.OpError, StopIteration) as error:
                raise _damaged(shard, number, error) from error
            else:
                yield episode

    def read_numbers(
        self, part: int, keys: Sequence[tuple[str, ...]], *, start: int = 0
    ) -> Iterator[tuple[str, tuple[NDArray[Any], ...]]]:
        """Yield the name of each episode and arrays of its steps.

        Use it for files that `read` has read without an error. Names and order are those of `read`, but episodes that
        `read` skips are included.

        Args:
            part: index of the file.
            keys: places in a step, such as `("action",)`; each gives one array [T, ...]. A place that begins with
                "episode_metadata" gives the single value of the episode.
            start: number of the first episode in the file.

        Raises:
            InputError: the steps have no such entry.
        """
        tf, tfds = load_tensorflow()
        builder, _ = open_builder(self.path)
        step = step_features(builder, self.path)
        shard = self._shards[part]
        of_episode, of_step = ([key for key in keys if (key[0] == EPISODE) is whole] for whole in (True, False))
        for key in keys:
            if functools.reduce(child, key, builder.info.features if key in of_episode else step) is None:
                raise InputError(f"{self.path}: the steps of {self.name!r} have no {'/'.join(key)}")
        features = tfds.features.FeaturesDict(
            {STEPS: tfds.features.Dataset(entries(step, of_step)), **entries(builder.info.features, of_episode)}
        )
        check_shapes(features, self.path)
        records = self._records(shard, start)
        for number in range(start, shard.take):
            try:
                record = tf.constant(next(records))
                found = features.deserialize_example(record, decoders={STEPS: tfds.decode.SkipDecoding()})
            except (tf.errors.OpError, StopIteration) as error:
                raise _damaged(shard, number, error) from error
            places = ((found if key in of_episode else found[STEPS], key) for key in keys)
            values = (functools.reduce(lambda node, name: node[name], key, place).numpy() for place, key in places)
            yield f"{shard.split}/{shard.first + number:06d}", tuple(values)

    def _records(self, shard: _ShardSlice, start: int) -> Iterator[bytes]:
        """Return the records of a file from number `start` of its slice on, unparsed."""
        tf, tfds = load_tensorflow()
        if not self._random_access:
            # Not tf.data: it takes 15 ms to open a file and never frees the graph that it makes for each.
            opened = map(tf.compat.v1.io.tf_record_iterator, [shard.file])  # lazy: opens it for the first record
            records = itertools.chain.from_iterable(opened)
            # The length of each record is checked before TensorFlow reads the record.
            checked = map(lambda _, record: record, _record_lengths(tf, shard.file), records)
            return itertools.islice(checked, shard.skip + start, shard.skip + shard.take)

        @functools.cache
        def source() -> Any:
            method = tfds.decode.DeserializeMethod.RAW_BYTES
            return open_builder(self.path)[0].as_data_source(split=shard.split, deserialize_method=method)

        def record(number: int) -> bytes:
            try:
                found: bytes = source()[shard.first + number]
            except (RuntimeError, ValueError, OSError) as error:
                raise tf.errors.DataLossError(None, None, str(error)) from error
            return found

        return map(record, range(start, shard.take))

    def _parser(self) -> Callable[[bytes], dict[str, Any]]:
        """Return the function record -> images, text, rate; made once, since tracing takes long."""
        tf, tfds = load_tensorflow()
        builder, _ = open_builder(self.path)
        # Only one camera, the text and the rate: other fields are never copied.
        text_keys = () if self.language_key is None else (self.language_key,)
        episode_keys = [path for path in text_keys if path[0] == EPISODE]
        episode_keys += [(EPISODE, "hz")] if self.hz is None else []
        step_keys = (self._image_path, *(path for path in text_keys if path[0] != EPISODE))
        wanted = entries(step_features(builder, self.path), step_keys)
        features = tfds.features.FeaturesDict(
            {STEPS: tfds.features.Dataset(wanted), **entries(builder.info.features, episode_keys)}
        )
        check_shapes(features, self.path)

        def parse(record: Any) -> dict[str, Any]:
            # Undecoded, the steps are one batch of arrays, and their images stay compressed.
            example = features.deserialize_example(record, decoders={STEPS: tfds.decode.SkipDecoding()})
            found = {"images": functools.reduce(lambda node, key: node[key], self._image_path, example[STEPS])}
            if self.language_key is not None:
                whole = example if self.language_key[0] == EPISODE else example[STEPS]
                found["text"] = functools.reduce(lambda node, key: node[key], self.language_key, whole)
            if self.hz is None:
                found["hz"] = example[EPISODE]["hz"]
            return found

        # With this signature the graph is traced once for all records.
        traced = tf.function(parse, input_signature=[tf.TensorSpec((), tf.string)])
        return lambda record: {key: value.numpy() for key, value in traced(tf.constant(record)).items()}

    def _episode(self, name: str, example: Mapping[str, Any]) -> Episode:
        images = tuple(example["images"])
        try:
            hz = float(np.ravel(example["hz"])[0]) if self.hz is None else self.hz
        except (ValueError, TypeError, IndexError):  # the rate is not a number
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
    """Yield the episodes of one split in file order.

    Args:
        path: see `RldsSource`, as for the others.
        split: a name or a TFDS slice.
        source: the row of the Open-X table.
        image_key: which image.
        hz: frames per second.
        start: number of the first episode that is read.
        max_skipped: unusable episodes before the run stops.

    Raises:
        InputError: at the call for wrong arguments, later for damaged files.
    """
    data = RldsSource(path, splits=(split,), source=source, image_key=image_key, hz=hz, max_skipped=max_skipped)

    def episodes() -> Iterator[Episode]:
        skip = start
        for number, part in enumerate(data.parts()):
            count = part.episodes or 0
            if skip < count:
                yield from data.read(number, start=skip)
            skip = max(0, skip - count)

    return episodes()


def _shard_slices(builder: Any, folder: str, split: str) -> Iterator[_ShardSlice]:
    """Yield the files of a split, or the slices of them that belong to a slice of the split."""
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
        file = f"{folder}/{instruction.basename()}"
        skip = int(instruction.skip)
        yield _ShardSlice(whole_split, file, skip, instruction.take, instruction.examples_in_shard, first + skip)


def _record_lengths(tf: ModuleType, file: str) -> Iterator[int]:
    """Yield the length of each record of a TFRecord file.

    TensorFlow allocates as much memory as a length says, and ends the process if that fails. So a damaged length must
    be found before TensorFlow reads the record.

    Raises:
        tf.errors.DataLossError: the record would end behind the file.
    """
    with tf.io.gfile.GFile(file, "rb") as stream:
        size = stream.size()
        position = 0
        while len(header := stream.read(8)) == 8:
            length = int.from_bytes(header, "little")
            position += 16 + length  # the length and its checksum, the record and its checksum
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


def _damaged(shard: _ShardSlice, number: int, error: Exception) -> InputError:
    advice = "copy or download the file again, or use a slice of the split that leaves it out"
    found = shard.skip + number
    if isinstance(error, StopIteration):
        return InputError(
            f"{shard.file} holds no more than {found} episodes, dataset_info.json says {shard.in_file}; {advice}"
        )
    reason = type(error).__name__
    return InputError(f"{shard.file} is damaged after {found} of {shard.in_file} episodes ({reason}); {advice}")
