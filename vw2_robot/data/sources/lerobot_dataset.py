"""A LeRobotDataset v3.0 as an `EpisodeSource`: images, instructions and the frame rate, read without LeRobot.

Layout: `meta/info.json` describes the data set, `meta/episodes/` has one row per episode, and the images are in
`videos/<camera>/chunk-*/file-*.mp4`, many episodes to a file, or inside `data/chunk-*/file-*.parquet`. One such file is
one part and is read in one pass; a video is decoded from the first wanted episode on. Only this file imports PyArrow,
when a source is opened.

Images of videos are held as JPEG, those of parquet files as stored. Versions 1 and 2 have another layout and are
refused. Actions and states are read by `read_lerobot_numbers` alone, never by a source. An episode with several tasks
gets the first one. An episode of more than `SEGMENT_FRAMES` frames comes in segments, called `<number>#<first frame>`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, MissingExtraError, require
from vw2_robot.storage.files import read_json

from ..episodes import Episode, Part
from .video_files import HIGHEST_HZ, SEGMENT_FRAMES, jpegs_at

CONVERT = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<user>/<name>"
MAX_FRAMES = 10**9
"""Limit of the frames of a data set and the seconds of a video, against damaged tables; 926 hours at 300 Hz."""
MAX_TABLE_BYTES = 2**30
"""Limit of the size of the uncompressed table of episodes."""
_CAMERA_PREFIXES = ("observation.images.", "observation.")


@dataclass(frozen=True)
class LeRobotDescription:
    """The content of `meta/info.json`: `splits` name -> episodes, `cameras` name -> "video" or "image"."""

    version: str
    hz: float
    episodes: int
    splits: dict[str, range]
    cameras: dict[str, str]
    numbers: tuple[str, ...]
    """columns with a number, or a row of numbers, for each frame; without the frame's own indices and time"""


def describe_lerobot(path: str | os.PathLike[str]) -> LeRobotDescription:
    """Return the description of a data set; reads one small file.

    Raises:
        InputError: the version is not v3.0, or the description is damaged.
    """
    info = _read_info(Path(path))
    return LeRobotDescription(
        version=info["codebase_version"],
        hz=float(info["fps"]),
        episodes=info["total_episodes"],
        splits=_splits(info),
        cameras=_cameras(info),
        numbers=tuple(key for key, feature in info["features"].items() if _is_numbers(key, feature)),
    )


@dataclass(frozen=True)
class _Row:
    """An episode, or the segment of `length` frames from its frame `first` on.

    It begins at `start` seconds of a video, or at the rows with its number in a parquet file.
    """

    number: int
    instruction: str
    length: int
    start: float
    first: int = 0
    is_end: bool = True

    @property
    def episode_id(self) -> str:
        """Return the number, and the first frame if that is not 0."""
        return f"{self.number:06d}#{self.first}" if self.first else f"{self.number:06d}"

    def segments(self, hz: float) -> Iterator[_Row]:
        """Yield segments that are short enough to be held in memory."""
        for first in range(0, self.length, SEGMENT_FRAMES):
            length = min(SEGMENT_FRAMES, self.length - first)
            is_end = first + length == self.length
            yield _Row(self.number, self.instruction, length, self.start + first / hz, first, is_end)


@dataclass(frozen=True)
class _File:
    path: Path
    rows: tuple[_Row, ...]


class LeRobotSource:
    """An `EpisodeSource` whose parts are the files with images."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        image_key: str | None = None,
        name: str | None = None,
    ) -> None:
        """Read the description and the table of episodes; no image is read.

        Args:
            path: the folder that holds `meta/`.
            split: one of the splits of the data set; every episode if None.
            image_key: the camera, in full (`observation.images.top`) or in short (`top`); may be left out if there is
                only one.
            name: of the source; that of the folder if None.

        Raises:
            InputError: the version is not v3.0, camera or split is unknown, the table is damaged, or a file is missing.
        """
        self.path = Path(path)
        self.name = name or self.path.resolve().name
        info = _read_info(self.path)
        self.hz = float(info["fps"])
        cameras = _cameras(info)
        self._camera = _choose_camera(self.path, cameras, image_key)
        self._is_video = cameras[self._camera] == "video"
        splits = _splits(info)
        if split is not None and split not in splits:
            raise InputError(f"{self.path} has no split {split!r}; available: {', '.join(splits) or 'none'}")
        self._files = self._find_files(info, None if split is None else splits[split])

    def parts(self) -> list[Part]:
        """Return one part per file of images."""
        return [Part(file.path.relative_to(self.path).as_posix(), len(file.rows)) for file in self._files]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one file, in the order of the file.

        Raises:
            InputError: the file is damaged, or holds fewer images than the table lists.
        """
        file = self._files[part]
        rows = file.rows[start:]
        if self._is_video:
            stored = jpegs_at(file.path, ((row.start, row.length) for row in rows), self.hz)
        else:
            stored = _stored_images(file.path, self._camera, rows)
        for row in rows:
            try:
                images = next(stored)
            except InputError as error:
                raise InputError(f"{self.name}, episode {row.episode_id}: {error}") from error
            yield Episode(self.name, row.episode_id, row.instruction, self.hz, images)

    def _find_files(self, info: Mapping[str, Any], chosen: range | None) -> tuple[_File, ...]:
        """Return the files of images with the episodes in each, from the table of episodes.

        Raises:
            InputError: the table is damaged, or a file is missing.
        """
        prefix = f"videos/{self._camera}" if self._is_video else "data"
        columns = ["episode_index", "tasks", "length", f"{prefix}/chunk_index", f"{prefix}/file_index"]
        columns += [f"{prefix}/from_timestamp"] * self._is_video
        files: dict[Path, list[_Row]] = {}
        total = 0
        template = _template(self.path, info, "video_path" if self._is_video else "data_path")
        for table, line in _read_episode_table(self.path, columns):
            try:
                # Images in parquet files have no start time: it is filled with 0.
                number, tasks, length, chunk, index, start = (*line, 0.0)[:6]
                row = _Row(int(number), _first_task(tasks), int(length), float(start))
                place = template.format(video_key=self._camera, chunk_index=int(chunk), file_index=int(index))
                # A damaged or hostile table must not name files outside the data set.
                is_inside = all(part != ".." and len(part.encode()) < 256 for part in Path(place).parts)
            except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
                raise InputError(
                    f"{table}: the place of an episode in {prefix} cannot be made out ({error}) from "
                    f"{_shown(dict(zip(columns, line, strict=True)))}; the set was not finished, or is damaged"
                ) from error
            total += row.length
            if not is_inside:
                raise InputError(
                    f"{table}, episode {row.number}: {place[:300]} can be no file of the set; fetch it again"
                )
            if not 0 < row.length <= total <= MAX_FRAMES or not 0 <= row.start <= MAX_FRAMES:
                raise InputError(
                    f"{table}, episode {row.number}: {row.length} frames from {row.start} s on; expected at least one "
                    "frame, and a time that is a number from 0 on. Fetch the set again, or leave the episode out"
                )
            # Rows of other splits are checked too, but not read.
            if chosen is None or row.number in chosen:
                files.setdefault(self.path / place, []).extend(row.segments(self.hz))
        if not files:
            raise InputError(f"{self.path} holds no episode")
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise InputError(
                f"{missing[0]} is missing, one of {len(missing)} of {len(files)} files; the download is incomplete:"
                " fetch the set again"
            )
        # Episodes in the order of the file, so that one pass reads them all.
        order = (lambda row: row.start) if self._is_video else (lambda row: (row.number, row.first))
        return tuple(_File(path, tuple(sorted(rows, key=order))) for path, rows in sorted(files.items()))


def read_lerobot_numbers(
    path: Path, columns: Sequence[str], *, first: int = 0
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Yield the number of each episode and its columns [T, n], in the order of the data files.

    Args:
        path: folder of the data set.
        columns: names of `LeRobotDescription.numbers`.
        first: number of the first episode that is wanted.

    Raises:
        InputError: a file is damaged, or a column is no row of numbers.
    """
    arrays = require("pyarrow", extra="lerobot")
    waiting: list[Any] = []  # tables of the episode whose end is not yet read
    number = -1
    for file in sorted((path / "data").glob("chunk-*/file-*.parquet")):
        with _opened(_pyarrow_parquet(), file) as table:
            absent = sorted({"episode_index", *columns} - set(table.schema_arrow.names))
            if absent:
                raise InputError(f"{file} has no column {absent[0]}; fetch the set again")
            for batch in table.iter_batches(batch_size=1024, columns=["episode_index", *columns]):
                index = batch["episode_index"].to_numpy()
                for rows in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index)) + 1):
                    if int(index[rows[0]]) != number:
                        if waiting and number >= first:
                            yield number, _columns(arrays.Table.from_batches(waiting), columns, file)
                        waiting = []
                        number = int(index[rows[0]])
                    waiting.append(batch.slice(rows[0], len(rows)))
    if waiting and number >= first:
        yield number, _columns(arrays.Table.from_batches(waiting), columns, path / "data")


def read_lerobot_texts(path: Path, columns: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the number of each episode -> these columns of the table of episodes; "" for a column that is not there.

    Args:
        path: folder of the data set.
        columns: names of columns of text.
    """
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    with _opened(_pyarrow_parquet(), files[0]) as table:
        there = [column for column in columns if column in table.schema_arrow.names]
    return {
        int(line[0]): tuple(str(dict(zip(there, line[1:], strict=True)).get(column) or "") for column in columns)
        for _, line in _read_episode_table(path, ["episode_index", *there])
    }


def _columns(table: Any, columns: Sequence[str], file: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of a table of one episode as arrays [T, n]."""
    found = {}
    for column in columns:
        values = table[column].combine_chunks()
        # Lists of a fixed or of any length hold their numbers one after the other.
        flat = values.flatten() if hasattr(values, "flatten") and hasattr(values.type, "value_type") else values
        numbers = flat.to_numpy(zero_copy_only=False)
        if flat.null_count or numbers.dtype.kind not in "fiub" or len(numbers) % len(table):
            raise InputError(f"{file}: column {column} holds {values.type}, expected rows of numbers of one length")
        found[column] = numbers.reshape(len(table), -1)
    return found


def _is_numbers(key: str, feature: Any) -> bool:
    """Return whether a feature is a number, or a row of numbers, that is not the frame's place or time."""
    if key in ("timestamp", "frame_index", "episode_index", "index", "task_index") or not isinstance(feature, dict):
        return False
    dtype, shape = feature.get("dtype"), feature.get("shape")
    is_number = isinstance(dtype, str) and re.fullmatch(r"(float|u?int)(8|16|32|64)|bool", dtype) is not None
    return is_number and isinstance(shape, list) and len(shape) == 1


def _pyarrow_parquet() -> ModuleType:
    try:
        return require("pyarrow.parquet", extra="lerobot")
    except MissingExtraError:
        raise
    except ImportError as error:  # for example PyArrow 26 with NumPy 1
        raise InputError(f'PyArrow cannot be used here ({error}); pip install "pyarrow<26"') from error


def _read_info(path: Path) -> dict[str, Any]:
    """Return the content of `meta/info.json`, after a check of version and types."""
    file = path / "meta" / "info.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist; expected a LeRobotDataset v3.0, a folder that holds meta/")
    info = read_json(file, cure="fetch the set again")
    version = str(info.get("codebase_version"))
    if version != "v3.0":
        advice = (
            f"convert it with LeRobot: {CONVERT}" if version.startswith(("v1", "v2")) else "only v3.0 is known here"
        )
        raise InputError(f"{path} is a LeRobotDataset of version {version[:20]}, expected v3.0; {advice}")
    info = {**info, "splits": info.get("splits") or {}, "total_episodes": info.get("total_episodes") or 0}
    kinds = {"fps": int | float, "features": dict, "data_path": str, "splits": dict, "total_episodes": int}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            found = _shown(info.get(key))
            raise InputError(f"{file}: {key} is {found}; expected a LeRobotDataset v3.0, fetch the set again")
    if not 0 < info["fps"] <= HIGHEST_HZ:
        raise InputError(f"{file}: fps is {info['fps']}, expected more than 0 and at most {HIGHEST_HZ:g}")
    return info


def _template(path: Path, info: Mapping[str, Any], key: str) -> str:
    """Return the pattern of file names; anything but the known fields, and absolute paths, are refused."""
    template = info.get(key)
    # The pattern comes from a file, and other fields of `str.format` could read attributes of what it is given.
    plain = r"(?:[^{}]|\{video_key\}|\{(?:chunk|file)_index(?::0?\d)?d?\})*"
    if not isinstance(template, str) or not re.fullmatch(plain, template) or template.startswith("/"):
        raise InputError(
            f"{path / 'meta' / 'info.json'}: {key} is {_shown(template)}; expected names such as "
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4, fetch the set again"
        )
    return template


def _shown(value: object) -> str:
    """Return a value for a message, not too long."""
    return repr(value)[:200]


def _cameras(info: Mapping[str, Any]) -> dict[str, str]:
    """Return camera -> "video" or "image", without depth maps."""
    # Depth maps are stored as videos too; writers mark them in one of two places, under one of two names.
    cameras: dict[str, str] = {}
    for key, feature in info["features"].items():
        if isinstance(feature, dict) and feature.get("dtype") in ("video", "image"):
            details = [feature.get(name) for name in ("video_info", "info")]
            flags = ("is_depth_map", "video.is_depth_map")
            if not any(found.get(flag) for found in details if isinstance(found, dict) for flag in flags):
                cameras[key] = feature["dtype"]
    return cameras


def _choose_camera(path: Path, cameras: Mapping[str, str], image_key: str | None) -> str:
    """Return the full name of the camera."""
    if image_key is None and len(cameras) == 1:
        return next(iter(cameras))
    # The full name first, so that a short name never hides one.
    for prefix in ("", *_CAMERA_PREFIXES):
        if image_key is not None and prefix + image_key in cameras:
            return prefix + image_key
    found = ", ".join(cameras) or "none"
    if image_key is not None or not cameras:
        raise InputError(f"{path} has no camera {image_key or ''!r}; it has: {found}")
    raise InputError(f"{path} has {len(cameras)} cameras; set image_key to one of: {found}")


def _splits(info: Mapping[str, Any]) -> dict[str, range]:
    """Return name -> episodes of the splits, which info.json stores as "first:end"."""
    found = {name: re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", str(text)) for name, text in info["splits"].items()}
    return {name: range(int(span[1]), int(span[2])) for name, span in found.items() if span}


def _read_episode_table(path: Path, columns: list[str]) -> Iterator[tuple[Path, list[Any]]]:
    """Yield the file and the given columns of every row."""
    parquet = _pyarrow_parquet()
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise InputError(f"{path / 'meta' / 'episodes'} holds no table of episodes; the download is incomplete")
    size = 0
    for file in files:
        with _opened(parquet, file) as table:
            absent = [column for column in columns if column not in table.schema_arrow.names]
            if absent:
                raise InputError(f"{file} has no column {absent[0]}; expected a LeRobotDataset v3.0, fetch it again")
            # In small batches: a table may be too large for the memory.
            for rows in table.iter_batches(batch_size=256, columns=columns):
                size += rows.nbytes  # a small compressed file can be huge when uncompressed
                if size > MAX_TABLE_BYTES:
                    raise InputError(
                        f"{file}: the table of episodes is larger than {MAX_TABLE_BYTES} bytes; fetch it again"
                    )
                for line in zip(*(rows[column].to_pylist() for column in columns), strict=True):
                    yield file, list(line)


@contextlib.contextmanager
def _opened(parquet: ModuleType, file: Path) -> Iterator[Any]:
    """Open a parquet file; every error of PyArrow, now or while it is read, becomes an InputError."""
    arrow: type[Exception] = require("pyarrow", extra="lerobot").ArrowException
    try:
        # Checksums are compared where the writer stored them.
        with parquet.ParquetFile(file, page_checksum_verification=True) as table:
            yield table
    except InputError:
        raise
    except (arrow, OSError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{file} is no readable parquet file ({reason}); it is damaged or cut short, or its writer was "
            "never finalized: write or fetch it again"
        ) from error


def _first_task(tasks: Any) -> str:
    """Return the first task of an episode as its instruction."""
    found = [tasks] if isinstance(tasks, str | bytes) else tasks or [""]
    text = found[0].decode("utf-8") if isinstance(found[0], bytes) else found[0]
    if not isinstance(text, str | None):
        raise TypeError(f"its task is {text!r}, not text")
    return (text or "").strip()


def _stored_images(file: Path, camera: str, rows: tuple[_Row, ...]) -> Iterator[tuple[bytes, ...]]:
    """Yield the images of some episodes of a data file, in one pass and in the order of the file."""
    stream = _image_rows(file, camera)
    waiting = next(stream, None)
    for row in rows:
        # Skip episodes of other splits, and frames before the segment.
        while waiting is not None and waiting[:2] < (row.number, row.first):
            waiting = next(stream, None)
        # The last segment takes all that is left of its episode, so that too many images are noticed as well.
        images: list[bytes] = []
        while waiting is not None and waiting[0] == row.number and (row.is_end or len(images) < row.length):
            images.append(waiting[2])
            waiting = next(stream, None)
        if len(images) != row.length:
            raise InputError(f"{file} holds {len(images)} images of it, the table says {row.length}; fetch it again")
        yield tuple(images)


def _image_rows(file: Path, camera: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield for every row the number of the episode, the number of the frame in it, and the stored image."""
    before = None
    frame = 0
    with _opened(_pyarrow_parquet(), file) as table:
        for key in ("episode_index", camera):
            if key not in table.schema_arrow.names:
                raise InputError(f"{file} has no column {key}; fetch the set again")
        for batch in table.iter_batches(batch_size=64, columns=["episode_index", camera]):
            for number, image in zip(batch["episode_index"].to_pylist(), batch[camera].to_pylist(), strict=True):
                # Hugging Face stores an image as {"bytes", "path"}; without bytes the file lies elsewhere.
                data = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(data, bytes):
                    raise InputError(f"{file}: an image of episode {number} lies outside the file; embed the images")
                frame = frame + 1 if number == before else 0
                before = number
                yield int(number), frame, data
