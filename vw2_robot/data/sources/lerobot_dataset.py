"""A LeRobotDataset v3.0 as a source: images, words and the rate, read without LeRobot.

Layout (interfaces specification, section 2.9): `meta/info.json` describes the set, `meta/episodes/` has one row per
episode, the images lie in `videos/<camera>/chunk-*/file-*.mp4`, many episodes to a file, or inside
`data/chunk-*/file-*.parquet`. One such file is one part and is read in one pass; of a video only the stretch from the
first wanted episode on is decoded. PyArrow is imported here and nowhere else, when a source is opened.

Images out of videos are held as JPEG, those out of parquet as they lie there. Versions 1 and 2 have another layout
and are refused. Actions and states are not read. An episode with several tasks gets the first one listed, one of more
than `PIECE_FRAMES` comes in pieces, called `<number>#<first frame>`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vw2_robot.errors import InputError, MissingExtraError, require
from vw2_robot.storage.files import read_json

from ..episodes import Episode, Part
from .video_files import HIGHEST_HZ, PIECE_FRAMES, jpegs_at

CONVERT = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<user>/<name>"
MAX_FRAMES = 10**9
"""Frames of a set, and seconds of a video; 926 hours of 300 Hz. What a damaged table says may be far beyond."""
MAX_TABLE_BYTES = 2**30
"""Size of the table of episodes when it is unpacked."""
_CAMERA_PREFIXES = ("observation.images.", "observation.")


@dataclass(frozen=True)
class LeRobotDescription:
    """What `meta/info.json` says: `splits` name -> episodes, `cameras` name -> "video" or "image"."""

    version: str
    hz: float
    episodes: int
    splits: dict[str, range]
    cameras: dict[str, str]


def describe_lerobot(path: str | os.PathLike[str]) -> LeRobotDescription:
    """Say what a set holds, from its description alone.

    Raises:
        InputError: another version than v3.0, or a damaged description.
    """
    info = _read_info(Path(path))
    return LeRobotDescription(
        version=info["codebase_version"],
        hz=float(info["fps"]),
        episodes=info["total_episodes"],
        splits=_splits(info),
        cameras=_cameras(info),
    )


@dataclass(frozen=True)
class _Row:
    """An episode, or `length` frames of one from frame `first` on.

    Its place is the seconds `start` in a video, or the rows that carry its number in a parquet file.
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

    def pieces(self, hz: float) -> Iterator[_Row]:
        """Cut it to what can be held in memory."""
        for first in range(0, self.length, PIECE_FRAMES):
            length = min(PIECE_FRAMES, self.length - first)
            is_end = first + length == self.length
            yield _Row(self.number, self.instruction, length, self.start + first / hz, first, is_end)


@dataclass(frozen=True)
class _File:
    path: Path
    rows: tuple[_Row, ...]


class LeRobotSource:
    """An `EpisodeSource` of which every part is one file of images."""

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
            split: one of the set's splits; every episode if None.
            image_key: the camera, in full (`observation.images.top`) or in short (`top`); may be left out where the
                set has a single one.
            name: of the source; the folder's own if None.

        Raises:
            InputError: another version, an unknown camera or split, a damaged table, a missing file.
        """
        self.path = Path(path)
        self.name = name or self.path.resolve().name
        info = _read_info(self.path)
        self.hz, cameras = float(info["fps"]), _cameras(info)
        self._camera = _choose_camera(self.path, cameras, image_key)
        self._is_video = cameras[self._camera] == "video"
        self._files = self._find_files(info, _chosen_episodes(self.path, _splits(info), split))

    def parts(self) -> list[Part]:
        """One part per file of images."""
        return [Part(file.path.relative_to(self.path).as_posix(), len(file.rows)) for file in self._files]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one file, in the order in which they lie there.

        Raises:
            InputError: the file is damaged, or holds less than the table says.
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
        prefix = f"videos/{self._camera}" if self._is_video else "data"
        columns = ["episode_index", "tasks", "length", f"{prefix}/chunk_index", f"{prefix}/file_index"]
        columns += [f"{prefix}/from_timestamp"] * self._is_video
        files: dict[Path, list[_Row]] = {}
        total, template = 0, _template(self.path, info, "video_path" if self._is_video else "data_path")
        for table, line in _read_episode_table(self.path, columns):
            try:
                number, tasks, length, chunk, index, start = (*line, 0.0)[:6]
                row = _Row(int(number), _first_task(tasks), int(length), float(start))
                place = template.format(video_key=self._camera, chunk_index=int(chunk), file_index=int(index))
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
            if chosen is None or row.number in chosen:
                files.setdefault(self.path / place, []).extend(row.pieces(self.hz))
        if not files:
            raise InputError(f"{self.path} holds no episode")
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise InputError(
                f"{missing[0]} is missing, one of {len(missing)} of {len(files)} files; the download is incomplete:"
                " fetch the set again"
            )
        order = (lambda row: row.start) if self._is_video else (lambda row: (row.number, row.first))
        return tuple(_File(path, tuple(sorted(rows, key=order))) for path, rows in sorted(files.items()))


def _pyarrow_parquet() -> ModuleType:
    try:
        return require("pyarrow.parquet", extra="lerobot")
    except MissingExtraError:
        raise
    except ImportError as error:  # such as PyArrow 26 beside NumPy 1, which only says so here
        raise InputError(f'PyArrow cannot be used here ({error}); pip install "pyarrow<26"') from error


def _read_info(path: Path) -> dict[str, Any]:
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
    """The pattern of the files' names; what else a pattern can say has no place in one, nor have other folders."""
    template = info.get(key)
    plain = r"(?:[^{}]|\{video_key\}|\{(?:chunk|file)_index(?::0?\d)?d?\})*"
    if not isinstance(template, str) or not re.fullmatch(plain, template) or template.startswith("/"):
        raise InputError(
            f"{path / 'meta' / 'info.json'}: {key} is {_shown(template)}; expected names such as "
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4, fetch the set again"
        )
    return template


def _shown(value: object) -> str:
    return repr(value)[:200]


def _cameras(info: Mapping[str, Any]) -> dict[str, str]:
    """Return camera -> "video" or "image", without depth maps."""
    features = {key: value for key, value in info["features"].items() if isinstance(value, dict)}
    return {
        key: value["dtype"]
        for key, value in features.items()
        if value.get("dtype") in ("video", "image") and not _is_depth(value)
    }


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = [feature.get(key) for key in ("video_info", "info")]
    marks = ("is_depth_map", "video.is_depth_map")
    return any(bool(found.get(mark)) for found in about if isinstance(found, dict) for mark in marks)


def _choose_camera(path: Path, cameras: Mapping[str, str], asked: str | None) -> str:
    if asked is None and len(cameras) == 1:
        return next(iter(cameras))
    for prefix in ("", *_CAMERA_PREFIXES):
        if asked is not None and prefix + asked in cameras:
            return prefix + asked
    found = ", ".join(cameras) or "none"
    if asked is not None or not cameras:
        raise InputError(f"{path} has no camera {asked or ''!r}; it has: {found}")
    raise InputError(f"{path} has {len(cameras)} cameras; set image_key to one of: {found}")


def _splits(info: Mapping[str, Any]) -> dict[str, range]:
    found = {name: re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", str(text)) for name, text in info["splits"].items()}
    return {name: range(int(span[1]), int(span[2])) for name, span in found.items() if span}


def _chosen_episodes(path: Path, splits: Mapping[str, range], split: str | None) -> range | None:
    if split is None:
        return None
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; available: {', '.join(splits) or 'none'}")
    return splits[split]


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
            for rows in table.iter_batches(batch_size=256, columns=columns):
                size += rows.nbytes  # a few bytes can be unpacked to any number of equal ones
                if size > MAX_TABLE_BYTES:
                    raise InputError(
                        f"{file}: the table of episodes is larger than {MAX_TABLE_BYTES} bytes; fetch it again"
                    )
                for line in zip(*(rows[column].to_pylist() for column in columns), strict=True):
                    yield file, list(line)


@contextlib.contextmanager
def _opened(parquet: ModuleType, file: Path) -> Iterator[Any]:
    """Open a parquet file; whatever PyArrow finds wrong with it, now or while it is read, becomes an InputError."""
    arrow: type[Exception] = require("pyarrow", extra="lerobot").ArrowException
    try:
        with parquet.ParquetFile(file) as table:
            yield table
    except InputError:
        raise
    except (arrow, OSError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"{file} is no readable parquet file ({_first_line(error)}); it is damaged or cut short, or its writer was "
            "never finalized: write or fetch it again"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _first_task(tasks: Any) -> str:
    words = [tasks] if isinstance(tasks, str | bytes) else tasks or [""]
    text = words[0].decode("utf-8") if isinstance(words[0], bytes) else words[0]
    if not isinstance(text, str | None):
        raise TypeError(f"its task is {text!r}, not text")
    return (text or "").strip()


def _stored_images(file: Path, camera: str, rows: tuple[_Row, ...]) -> Iterator[tuple[bytes, ...]]:
    """Yield the images of some episodes of a data file, in one pass and in the order of the file."""
    stream = _image_rows(file, camera)
    waiting = next(stream, None)
    for row in rows:
        while waiting is not None and waiting[:2] < (row.number, row.first):
            waiting = next(stream, None)
        images: list[bytes] = []
        while waiting is not None and waiting[0] == row.number and (row.is_end or len(images) < row.length):
            images.append(waiting[2])
            waiting = next(stream, None)
        if len(images) != row.length:
            raise InputError(f"{file} holds {len(images)} images of it, the table says {row.length}; fetch it again")
        yield tuple(images)


def _image_rows(file: Path, camera: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the episode's number, the frame's number in it and the stored image of every row."""
    before, frame = None, 0
    with _opened(_pyarrow_parquet(), file) as table:
        for key in ("episode_index", camera):
            if key not in table.schema_arrow.names:
                raise InputError(f"{file} has no column {key}; fetch the set again")
        for batch in table.iter_batches(batch_size=64, columns=["episode_index", camera]):
            for number, image in zip(batch["episode_index"].to_pylist(), batch[camera].to_pylist(), strict=True):
                data = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(data, bytes):
                    raise InputError(f"{file}: an image of episode {number} lies outside the file; embed the images")
                before, frame = number, frame + 1 if number == before else 0
                yield int(number), frame, data
