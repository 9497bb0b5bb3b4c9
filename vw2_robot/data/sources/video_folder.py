"""A folder of plain videos as a source: every video is an episode, with words where a table of captions gives them.

For video without actions: somebody's clips, Video-CraftBench, what `vw2-record format=video` writes. Videos are found
in the folder and below it. A `captions.jsonl` or `metadata.jsonl` speaks about the videos of its own folder, one JSON
object a line:

    {"file": "fold_paper.mp4", "instruction": "fold the paper in half", "hz": 30}

`file` (or `file_name`) is needed; `instruction` (or `text`, `caption`) and `hz` are optional, everything else is left
alone. Without `hz` the rate is the container's. Videos are cut into pieces of at most `PIECE_FRAMES`, and the images
of a piece are held as JPEG: a video of an hour costs no more memory than one of half a minute.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.errors import InputError

from ..episodes import Episode, Part
from ..folder_files import files_below, name_below
from .video_files import HIGHEST_HZ, PIECE_FRAMES, describe_video, frames_at_rate, timed_frames

VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi")
CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
_FILE_KEYS = ("file", "file_name")
_TEXT_KEYS = ("instruction", "text", "caption")


@dataclass(frozen=True)
class Video:
    """One video: `name` is its path inside the folder; `hz` and `frames` are None where no caption gives them."""

    name: str
    instruction: str = ""
    hz: float | None = None
    frames: int | None = None


class VideoFolderSource:
    """An `EpisodeSource` of which every part is one video; its further pieces are called `<file>#<first frame>`."""

    def __init__(self, path: str | os.PathLike[str], *, hz: float | None = None, name: str | None = None) -> None:
        """List the videos and read their captions; no video is opened.

        Args:
            path: the folder.
            hz: frames per second, for videos that do not play in real time; overrides captions and containers. Frames
                are then taken in their order, without regard to their times.
            name: of the source; the folder's own if None.

        Raises:
            InputError: no folder, no video in it, or a table of captions that is damaged or names missing files.
        """
        self.path = Path(path)
        if hz is not None and not 0 < hz < math.inf:
            raise InputError(f"hz must be positive, found {hz}")
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected a folder of videos ({', '.join(VIDEO_ENDINGS)})")
        self.name = name or self.path.resolve().name
        self._hz = hz
        self.videos = _find_videos(self.path)

    def parts(self) -> list[Part]:
        """One part per video, by name; the number of pieces is known where a caption tells the number of frames."""
        return [
            Part(video.name, math.ceil(video.frames / PIECE_FRAMES) if video.frames else None) for video in self.videos
        ]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the pieces of one video.

        Raises:
            InputError: the video is damaged, or its rate is not known.
        """
        video = self.videos[part]
        file = self.path / video.name
        given = self._hz or video.hz
        hz = given or describe_video(file).hz
        if hz is None:
            raise InputError(
                f"{file} does not tell its rate; give hz, frames per second (data.hz=30), or a caption with hz"
            )
        frames = timed_frames(file) if given else frames_at_rate(file, hz)
        first, images = start * PIECE_FRAMES, list[bytes]()
        for number, frame in enumerate(frames):
            if number < first:
                continue
            if len(images) == PIECE_FRAMES:
                yield self._piece(video, first, hz, images)
                first, images = number, []
            images.append(frame.jpeg())
        if images:
            yield self._piece(video, first, hz, images)

    def _piece(self, video: Video, first: int, hz: float, images: list[bytes]) -> Episode:
        return Episode(
            source=self.name,
            episode_id=f"{video.name}#{first}" if first else video.name,
            instruction=video.instruction,
            hz=hz,
            images=tuple(images),
        )


def has_videos(path: Path, *, below: bool = True) -> bool:
    """Say whether a folder, or (with `below`) one directly inside it, holds a video."""
    return any(_is_video(file) for pattern in ("*", "*/*")[: 1 + below] for file in path.glob(pattern))


def _find_videos(root: Path) -> tuple[Video, ...]:
    found = {name_below(root, file): file for file in files_below(root) if _is_video(file)}
    if not found:
        raise InputError(f"{root} holds no video, nor does a folder in it; expected {', '.join(VIDEO_ENDINGS)}")
    captions: dict[str, Video] = {}
    for folder in sorted(
        {root, *(parent for file in found.values() for parent in file.parents if root in parent.parents)}
    ):
        for table in (folder / name for name in CAPTION_FILES if (folder / name).is_file()):
            for video in _read_captions(table, root):
                if video.name not in found:
                    raise InputError(f"{table} names {video.name}, which is not there; copy the folder again")
                captions[video.name] = video
    return tuple(captions.get(name, Video(name)) for name in sorted(found))


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_ENDINGS and not file.name.startswith(".") and file.is_file()


def _read_captions(table: Path, root: Path) -> Iterator[Video]:
    folder = table.parent.relative_to(root)
    try:
        text = table.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), start=1):  # other ends of lines may lie inside a sentence
        if line.strip():
            yield _video_of(f"{table}, line {number}", line, folder)


def _video_of(where: str, line: str, folder: Path) -> Video:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON ({error})") from None
    file = _first(row, _FILE_KEYS) if isinstance(row, dict) else None
    if not isinstance(file, str):
        raise InputError(f'{where}: expected an object with "file", found {line.strip()[:80]}')
    text, hz, frames = _first(row, _TEXT_KEYS), row.get("hz"), row.get("frames")
    if not isinstance(text, str | None):
        raise InputError(f"{where}: the instruction must be text, found {text!r}")
    if hz is not None and (isinstance(hz, bool) or not isinstance(hz, int | float) or not 0 < hz <= HIGHEST_HZ):
        raise InputError(f"{where}: hz must be a positive number, at most {HIGHEST_HZ:g}, found {hz!r}")
    return Video(
        name=Path(os.path.normpath(folder / file)).as_posix(),
        instruction=(text or "").strip(),
        hz=None if hz is None else float(hz),
        frames=frames if isinstance(frames, int) and 0 < frames < 2**31 else None,
    )


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)
