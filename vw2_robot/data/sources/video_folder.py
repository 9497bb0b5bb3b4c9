"""A folder of videos as an `EpisodeSource`: every video is an episode, with an instruction if a table has a caption.

For video without actions: own clips, Video-CraftBench, the output of `vw2-record format=video`. Videos are found in the
folder and below it. A `captions.jsonl` or `metadata.jsonl` describes the videos of its own folder, one JSON object a
line:

    {"file": "fold_paper.mp4", "instruction": "fold the paper in half", "hz": 30}

`file` (or `file_name`) is required; `instruction` (or `text`, `caption`) and `hz` are optional, other keys are ignored.
Without `hz` the rate of the file is used. Videos are cut into segments of at most `SEGMENT_FRAMES` frames, and the
images of a segment are held as JPEG, so a video of an hour needs no more memory than one of half a minute.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.errors import InputError

from ..episodes import Episode, Part
from .craft_names import craft_instruction
from .folder_files import files_below, name_below
from .video_files import HIGHEST_HZ, SEGMENT_FRAMES, describe_video, frames_at_rate, timed_frames

VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi")
CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
_FILE_KEYS = ("file", "file_name")
_TEXT_KEYS = ("instruction", "text", "caption")


@dataclass(frozen=True)
class VideoEntry:
    """One video: `name` is its path inside the folder; `hz` and `num_frames` are None if no caption has them."""

    name: str
    instruction: str = ""
    hz: float | None = None
    num_frames: int | None = None


class VideoFolderSource:
    """An `EpisodeSource` whose parts are videos; segments after the first are called `<file>#<first frame>`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        hz: float | None = None,
        name: str | None = None,
        files: Sequence[str] | None = None,
    ) -> None:
        """List the videos and read their captions; no video is opened.

        Args:
            path: the folder.
            hz: frames per second, for videos that do not play in real time; overrides captions and files. Frames are
                then taken in order, and their times are ignored.
            name: of the source; that of the folder if None.
            files: names in the folder to read, in order, instead of all; captions are not looked for then.

        Raises:
            InputError: there is no such folder, it holds no video, or a table of captions is damaged or names missing
                files.
        """
        self.path = Path(path)
        if hz is not None and not 0 < hz < math.inf:
            raise InputError(f"hz must be positive, found {hz}")
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected a folder of videos ({', '.join(VIDEO_ENDINGS)})")
        self.name = name or self.path.resolve().name
        self._hz = hz
        self.videos = _find_videos(self.path) if files is None else tuple(map(VideoEntry, files))

    def parts(self) -> list[Part]:
        """Return one part per video, by name; the number of segments is known if a caption has the number of frames."""
        return [
            Part(video.name, math.ceil(video.num_frames / SEGMENT_FRAMES) if video.num_frames else None)
            for video in self.videos
        ]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the segments of one video, from number `start` on.

        Raises:
            InputError: the video is damaged, or its frame rate is not known.
        """
        video = self.videos[part]
        file = self.path / video.name
        given = self._hz or video.hz
        hz = given or describe_video(file).hz
        if hz is None:
            raise InputError(
                f"{file} has no known frame rate; give hz, frames per second (data.hz=30), or a caption with hz"
            )
        # With a given rate the times in the file are not meant to be real.
        frames = timed_frames(file) if given else frames_at_rate(file, hz)
        first = start * SEGMENT_FRAMES
        images: list[bytes] = []
        # Frames before the wanted segment are decoded but not converted: segments are counted in frames, not in time.
        for number, frame in enumerate(frames):
            if number < first:
                continue
            if len(images) == SEGMENT_FRAMES:
                yield self._segment(video, first, hz, images)
                first = number
                images = []
            images.append(frame.jpeg())
        if images:
            yield self._segment(video, first, hz, images)

    def _segment(self, video: VideoEntry, first: int, hz: float, images: list[bytes]) -> Episode:
        """Return the frames of a video from number `first` on as an episode."""
        return Episode(
            source=self.name,
            episode_id=f"{video.name}#{first}" if first else video.name,
            instruction=video.instruction,
            hz=hz,
            images=tuple(images),
        )


def has_videos(path: Path, *, below: bool = True) -> bool:
    """Return whether a folder, or (with `below`) one directly inside it, holds a video."""
    return any(_is_video(file) for pattern in ("*", "*/*")[: 1 + below] for file in path.glob(pattern))


def _find_videos(root: Path) -> tuple[VideoEntry, ...]:
    """Return all videos in and below a folder, with their captions."""
    found = {name_below(root, file): file for file in files_below(root) if _is_video(file)}
    if not found:
        raise InputError(f"{root} holds no video, nor does a folder in it; expected {', '.join(VIDEO_ENDINGS)}")
    # Tables are read from all folders between the root and a video; deeper ones come later and win.
    captions: dict[str, VideoEntry] = {}
    for folder in sorted(
        {root, *(parent for file in found.values() for parent in file.parents if root in parent.parents)}
    ):
        for table in (folder / name for name in CAPTION_FILES if (folder / name).is_file()):
            for video in _read_captions(table, root):
                if video.name not in found:
                    raise InputError(f"{table} names {video.name}, which is not there; copy the folder again")
                captions[video.name] = video
    # Clips of Video-CraftBench have no table; their names say what is made.
    return tuple(captions.get(name, VideoEntry(name, craft_instruction(name))) for name in sorted(found))


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_ENDINGS and not file.name.startswith(".") and file.is_file()


def _read_captions(table: Path, root: Path) -> Iterator[VideoEntry]:
    """Yield the videos that a table of captions describes."""
    folder = table.parent.relative_to(root)
    try:
        text = table.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), start=1):  # `splitlines` would also split inside an instruction
        if line.strip():
            yield _video_of(f"{table}, line {number}", line, folder)


def _video_of(where: str, line: str, folder: Path) -> VideoEntry:
    """Return the video that a line of a table describes; `where` names the line in messages."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON ({error})") from None
    file = _first(row, _FILE_KEYS) if isinstance(row, dict) else None
    if not isinstance(file, str):
        raise InputError(f'{where}: expected an object with "file", found {line.strip()[:80]}')
    text = _first(row, _TEXT_KEYS)
    hz = row.get("hz")
    num_frames = row.get("frames")
    if not isinstance(text, str | None):
        raise InputError(f"{where}: the instruction must be text, found {text!r}")
    if hz is not None and (isinstance(hz, bool) or not isinstance(hz, int | float) or not 0 < hz <= HIGHEST_HZ):
        raise InputError(f"{where}: hz must be a positive number, at most {HIGHEST_HZ:g}, found {hz!r}")
    return VideoEntry(
        # A caption may name a video with "../": the path is normalized before it is compared.
        name=Path(os.path.normpath(folder / file)).as_posix(),
        instruction=(text or "").strip(),
        hz=None if hz is None else float(hz),
        num_frames=num_frames if isinstance(num_frames, int) and 0 < num_frames < 2**31 else None,
    )


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the first of these keys that is present."""
    return next((row[key] for key in keys if row.get(key) is not None), None)
