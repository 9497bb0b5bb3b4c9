"""Videos with key steps: the miniature of `vw2-record env=craft`, and Video-CraftBench in the layout of its release.

A video of a task reaches its seven key steps one after the other; `key_frames` are the frames at which it does. Either
a table of captions states them (`captions.jsonl`, keys `task` and `key_frames`), or a file `key_frames.json` beside the
videos: {"paper_airplane_0.mp4": [31, 88, ...], ...}. Frame numbers count the frames of the file.

Names of Video-CraftBench are TASK_OBJECT_VIDEO.mp4, and of its clips TASK_OBJECT_VIDEO_CLIP.mp4, where TASK is `paper`
or `buildingblock`. Task and instruction follow from them. For training without key steps, a folder of clips is a plain
folder of videos (`video_folder`), whose instructions follow from the same names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from ..images import resize_frame
from .craft_names import NAME, VERBS, craft_instruction
from .video_files import describe_video, timed_frames

KEY_STEPS = 7
KEY_FRAMES = "key_frames.json"
CAPTIONS = "captions.jsonl"


@dataclass(frozen=True)
class CraftVideo:
    """One video with key steps; the numbers of `key_frames` increase, one for each of the seven."""

    path: Path
    name: str
    task: str
    instruction: str
    key_frames: tuple[int, ...]
    hz: float | None = None
    """frames per second; None: as the file says"""
    embodiment: str = ""
    track: NDArray[np.float64] | None = None
    """[T, 2]: where the tool is in the image, which recordings of the simulator know"""

    def steps_done(self, frame: int) -> int:
        """Return how many key steps are reached at a frame, 0 to 7."""
        return sum(frame >= key_frame for key_frame in self.key_frames)


def read_craft_videos(folder: str | Path) -> list[CraftVideo]:
    """Return the videos of a folder that have key steps, by name; no video is opened.

    Args:
        folder: with `captions.jsonl` or `key_frames.json`.

    Raises:
        InputError: neither is there, one is damaged, or a video in it is missing.
    """
    path = Path(folder)
    if (path / CAPTIONS).is_file():
        rows = list(_captions(path / CAPTIONS))
    elif (path / KEY_FRAMES).is_file():
        rows = list(_key_frames(path / KEY_FRAMES))
    else:
        raise InputError(
            f"{path} has neither {CAPTIONS} nor {KEY_FRAMES}; give a split of `vw2-record env=craft`, or videos with "
            f"their key frames in {KEY_FRAMES}: {{NAME.mp4: [{KEY_STEPS} frame numbers], ...}}"
        )
    videos = [_video(path, row) for row in rows if "key_frames" in row]
    if not videos:
        raise InputError(f"{path}: no video has key frames; they are written by vw2-record env=craft")
    return sorted(videos, key=lambda video: video.name)


def read_frames(video: CraftVideo, wanted: Sequence[int], *, height: int, width: int) -> NDArray[np.uint8]:
    """Return some frames of a video, uint8 [n, H, W, 3], in the order of `wanted`, which increases.

    Args:
        video: whose file is decoded from the beginning to the last wanted frame.
        wanted: numbers of frames; beyond the end the last frame is repeated.
        height: of the result.
        width: of the result.
    """
    found: list[NDArray[np.uint8]] = []
    last = None
    for number, frame in enumerate(timed_frames(video.path)):
        last = frame
        while len(found) < len(wanted) and wanted[len(found)] == number:
            found.append(resize_frame(frame.image(), height=height, width=width))
        if len(found) == len(wanted):
            break
    if last is None:
        raise InputError(f"{video.path} has no frame; copy it again")
    found += [resize_frame(last.image(), height=height, width=width)] * (len(wanted) - len(found))
    return np.stack(found)


def _captions(table: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{table}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{table}, line {number}: expected an object with file and key_frames")
        yield row


def _key_frames(file: Path) -> Iterator[dict[str, Any]]:
    content = read_json(file, cure="copy it again")
    for name, key_frames in content.items():
        found = NAME.fullmatch(Path(name).stem)
        if found is None:
            raise InputError(f"{file} names {name!r}, expected TASK_OBJECT_NUMBER.mp4 with TASK one of {list(VERBS)}")
        task = f"{found['kind']}_{found['made']}"
        yield {"file": name, "task": task, "instruction": craft_instruction(name), "key_frames": key_frames}


def _video(folder: Path, row: dict[str, Any]) -> CraftVideo:
    name, key_frames = row.get("file"), row["key_frames"]
    numbers = key_frames if isinstance(key_frames, list) else []
    if len(numbers) != KEY_STEPS or any(type(n) is not int for n in numbers) or sorted(set(numbers)) != numbers:
        raise InputError(
            f"{folder}: key_frames of {name!r} must be {KEY_STEPS} increasing numbers, found {key_frames!r}"
        )
    if not isinstance(name, str) or not (folder / name).is_file():
        raise InputError(f"{folder} has key frames of {name!r}, which is not there; copy the folder again")
    track = row.get("track")
    return CraftVideo(
        path=folder / name,
        name=name,
        task=str(row.get("task", "")),
        instruction=str(row.get("instruction", "")),
        key_frames=tuple(numbers),
        hz=float(row["hz"]) if "hz" in row else describe_video(folder / name).hz,
        embodiment=str(row.get("embodiment", "")),
        track=None if track is None else np.array(track, dtype=np.float64).reshape(-1, 2),
    )
