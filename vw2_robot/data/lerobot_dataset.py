"""A LeRobotDataset v3.0 as a source: pictures, words and the rate, read without LeRobot.

Layout (interfaces specification, section 2.9): `meta/info.json` describes the set, `meta/episodes/` has one row per
episode, the pictures lie in `videos/<camera>/chunk-*/file-*.mp4`, many episodes to a file, or inside
`data/chunk-*/file-*.parquet`. One such file is one part and is read in one pass; of a film only the stretch from the
first wanted episode on is decoded. PyArrow is imported here and nowhere else, when a source is opened.

Pictures out of films are held as JPEG, those out of parquet as they lie there. Versions 1 and 2 have another layout
and are refused. Actions and states are not read. An episode with several tasks gets the first one listed, one of more
than `PIECE_FRAMES` comes in pieces, called `<number>#<first frame>`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vw2_robot.errors import InputError, MissingExtraError, require

from .episodes import Episode, Part
from .video_files import PIECE_FRAMES, jpegs_at

CONVERT = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<user>/<name>"
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
        episodes=int(info.get("total_episodes") or 0),
        splits=_splits(info),
        cameras=_cameras(info),
    )


@dataclass(frozen=True)
class _Row:
    """An episode, or `length` frames of one from frame `first` on.

    Its place is the seconds `start` in a film, or the rows that carry its number in a parquet file.
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
    """An `EpisodeSource` of which every part is one file of pictures."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        image_key: str | None = None,
        name: str | None = None,
    ) -> None:
        """Read the description and the table of episodes; no picture is read.

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
        self._is_film = cameras[self._camera] == "video"
        self._files = self._find_files(info, _chosen_episodes(self.path, _splits(info), split))

    def parts(self) -> list[Part]:
        """One part per file of pictures."""
        return [Part(file.path.relative_to(self.path).as_posix(), len(file.rows)) for file in self._files]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episodes of one file, in the order in which they lie there.

        Raises:
            InputError: the file is damaged, or holds less than the table says.
        """
        file = self._files[part]
        rows = file.rows[start:]
        if self._is_film:
            pictures = jpegs_at(file.path, ((row.start, row.length) for row in rows), self.hz)
        else:
            pictures = _stored_pictures(file.path, self._camera, rows)
        for row in rows:
            try:
                images = next(pictures)
            except InputError as error:
                raise InputError(f"{self.name}, episode {row.episode_id}: {error}") from error
            yield Episode(self.name, row.episode_id, row.instruction, self.hz, images)

    def _find_files(self, info: Mapping[str, Any], chosen: range | None) -> tuple[_File, ...]:
        prefix = f"videos/{self._camera}" if self._is_film else "data"
        columns = ["episode_index", "tasks", "length", f"{prefix}/chunk_index", f"{prefix}/file_index"]
        columns += [f"{prefix}/from_timestamp"] * self._is_film
        files: dict[Path, list[_Row]] = {}
        for line in _read_episode_table(self.path, columns):
            try:
                number, tasks, length, chunk, index, start = (*line, 0.0)[:6]
                row = _Row(int(number), _first_task(tasks), int(length), float(start))
                template = info["video_path" if self._is_film else "data_path"]
                place = template.format(video_key=self._camera, chunk_index=int(chunk), file_index=int(index))
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise InputError(
                    f"{self.path}: the place of an episode in {prefix} cannot be made out ({error}) from "
                    f"{dict(zip(columns, line, strict=True))}; the set was not finished, or is damaged"
                ) from error
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
        order = (lambda row: row.start) if self._is_film else (lambda row: (row.number, row.first))
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
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; expected a LeRobotDataset v3.0, a folder that holds meta/") from None
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); fetch the set again") from None
    version = str(info.get("codebase_version")) if isinstance(info, dict) else "none"
    if version != "v3.0":
        advice = (
            f"convert it with LeRobot: {CONVERT}" if version.startswith(("v1", "v2")) else "only v3.0 is known here"
        )
        raise InputError(f"{path} is a LeRobotDataset of version {version}, expected v3.0; {advice}")
    for key, kind in (("fps", int | float), ("features", dict), ("data_path", str)):
        if not isinstance(info.get(key), kind):
            raise InputError(f"{file}: {key} is {info.get(key)!r}; expected a LeRobotDataset v3.0, fetch the set again")
    if not info["fps"] > 0:
        raise InputError(f"{file}: fps is {info['fps']}, expected more than 0")
    return info


def _cameras(info: Mapping[str, Any]) -> dict[str, str]:
    """Return camera -> "video" or "image", without depth maps."""
    features = {key: value for key, value in info["features"].items() if isinstance(value, dict)}
    return {
        key: value["dtype"]
        for key, value in features.items()
        if value.get("dtype") in ("video", "image") and not _is_depth(value)
    }


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(about.get("is_depth_map") or about.get("video.is_depth_map"))


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
    splits = {}
    for name, words in (info.get("splits") or {}).items():
        first, _, end = str(words).partition(":")
        if first.isdigit() and end.isdigit():
            splits[name] = range(int(first), int(end))
    return splits


def _chosen_episodes(path: Path, splits: Mapping[str, range], split: str | None) -> range | None:
    if split is None:
        return None
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; available: {', '.join(splits) or 'none'}")
    return splits[split]


def _read_episode_table(path: Path, columns: list[str]) -> Iterator[list[Any]]:
    parquet = _pyarrow_parquet()
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise InputError(f"{path / 'meta' / 'episodes'} holds no table of episodes; the download is incomplete")
    for file in files:
        with _opened(parquet, file) as table:
            absent = [column for column in columns if column not in table.schema_arrow.names]
            if absent:
                raise InputError(f"{file} has no column {absent[0]}; expected a LeRobotDataset v3.0, fetch it again")
            rows = table.read(columns=columns)
            yield from map(list, zip(*(rows[column].to_pylist() for column in columns), strict=True))


@contextlib.contextmanager
def _opened(parquet: ModuleType, file: Path) -> Iterator[Any]:
    """Open a parquet file; whatever PyArrow finds wrong with it, now or while it is read, becomes an InputError."""
    try:
        with parquet.ParquetFile(file) as table:
            yield table
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, MemoryError) as error:
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


def _stored_pictures(file: Path, camera: str, rows: tuple[_Row, ...]) -> Iterator[tuple[bytes, ...]]:
    """Yield the pictures of some episodes of a data file, in one pass and in the order of the file."""
    stream = _picture_rows(file, camera)
    waiting = next(stream, None)
    for row in rows:
        while waiting is not None and waiting[:2] < (row.number, row.first):
            waiting = next(stream, None)
        images: list[bytes] = []
        while waiting is not None and waiting[0] == row.number and (row.is_end or len(images) < row.length):
            images.append(waiting[2])
            waiting = next(stream, None)
        if len(images) != row.length:
            raise InputError(f"{file} holds {len(images)} pictures of it, the table says {row.length}; fetch it again")
        yield tuple(images)


def _picture_rows(file: Path, camera: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the episode's number, the frame's number in it and the stored picture of every row."""
    before, frame = None, 0
    with _opened(_pyarrow_parquet(), file) as table:
        for key in ("episode_index", camera):
            if key not in table.schema_arrow.names:
                raise InputError(f"{file} has no column {key}; fetch the set again")
        for batch in table.iter_batches(batch_size=64, columns=["episode_index", camera]):
            for number, picture in zip(batch["episode_index"].to_pylist(), batch[camera].to_pylist(), strict=True):
                data = picture.get("bytes") if isinstance(picture, dict) else picture
                if not isinstance(data, bytes):
                    raise InputError(f"{file}: a picture of episode {number} lies outside the file; embed the pictures")
                before, frame = number, frame + 1 if number == before else 0
                yield int(number), frame, data
