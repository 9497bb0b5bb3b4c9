"""Output formats of a recording: a CALVIN split, an RLDS data set, or a folder of videos.

The two classes have the same four methods, so `record.py` does not depend on the format. CALVIN frames are written at
their final place. The other two formats are containers that must be written in one pass: their recordings are stored
under `<out>.parts/`, which is removed when the container is complete. All of them can be killed and started again.

A CALVIN data set keeps a recording whole, with its labeled windows. RLDS and video consist of episodes with one
instruction each: there each window becomes an episode, and steps of play outside the windows are left out. Their
actions are the commanded ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin_writer import REQUIRED_ARRAYS, CalvinWriter
from vw2_robot.data.episodes import Demonstration, Episode, encode_jpeg
from vw2_robot.data.sources.calvin import CalvinSplit
from vw2_robot.data.sources.recorded_robot import CALVIN_ROBOT, RecordedRobot
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays
from vw2_robot.storage.files import atomic_folder, write_text
from vw2_robot.storage.mp4 import Mp4Writer

from ..instructions import load_instructions
from .demonstrations import RecordedDemonstration

Format = Literal["calvin", "rlds", "video"]


class Outcome(NamedTuple):
    """The tasks of one recording, and those at which its failed attempts ended."""

    tasks: tuple[str, ...]
    failed: tuple[str, ...]


MAX_FRAME = 10_000_000
"""Frame numbers have seven digits in the names of files, which readers rely on."""
RLDS_VERSION = "1.0.0"
CALVIN_RULE = "as in CALVIN's rel_actions"


def frames_per_recording(longest: int) -> int:
    """Return how many frame numbers the CALVIN format reserves for each recording of at most `longest` steps.

    A power of two; the first frame of a recording depends on its number alone, so processes can write in any order.
    """
    return 1 << (longest - 1).bit_length()


class CalvinOutput:
    """The splits of a CALVIN data set.

    Args:
        out: the data set's folder.
        compress_level: zlib level of the frames, 0 to 9.
        spacing: frame numbers reserved for each recording.
        environment: the text of `.hydra/merged_config.yaml`; None: no such file, as for a robot that is not CALVIN's.
        robot: of the recordings.
        instructions: of each task, for the validation split; None: CALVIN's.
    """

    def __init__(
        self,
        out: Path,
        *,
        compress_level: int,
        spacing: int,
        environment: str | None = None,
        robot: RecordedRobot = CALVIN_ROBOT,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        self._out = out
        self._level = compress_level
        self._spacing = spacing
        self._environment = environment
        self._robot = robot
        self._instructions = instructions

    def is_complete(self) -> bool:
        """Return False: a data set can always get more recordings, so only counting them decides."""
        return False

    def has(self, split: CalvinSplit, number: int) -> bool:
        """Return whether this recording is complete."""
        return self._writer(split).is_complete(number * self._spacing)

    def add(self, split: CalvinSplit, number: int, recording: RecordedDemonstration) -> None:
        """Write recording `number` of a split.

        Args:
            split: the split to write to.
            number: of the recording within its split; its first frame is `number * spacing`.
            recording: arrays [L, ...] of its L control steps, with scene, labels and failed attempts.
        """
        self._writer(split).write_recording(
            recording.arrays,
            first_frame=number * self._spacing,
            scene=recording.scene,
            labels=recording.labels,
            failed=recording.failed,
        )

    def outcomes(self, split: CalvinSplit) -> Iterator[Outcome]:
        """Yield the outcome of each recording."""
        for entry in self._writer(split).entries():
            yield Outcome(tuple(label.task for label in entry.labels), entry.failed)

    def finish(self, splits: list[CalvinSplit]) -> None:
        """Write the files that describe the splits."""
        instructions = self._instructions
        if instructions is None:
            instructions = {task: texts[0] for task, texts in load_instructions("validation").items()}
        for split in splits:
            self._writer(split).finish(instructions, self._environment)

    def _writer(self, split: CalvinSplit) -> CalvinWriter:
        required = REQUIRED_ARRAYS if self._robot == CALVIN_ROBOT else ("rgb_static", "commanded_actions")
        return CalvinWriter(self._out, split, compress_level=self._level, required=required, robot=self._robot)


Pack = Callable[[Path, dict[CalvinSplit, list[Path]]], None]
"""Writes a container from the parts of each split."""


class PartsOutput:
    """Recordings that are stored in `<out>.parts/` until `pack` writes the container.

    Args:
        out: the container.
        pack: writes it.
    """

    def __init__(self, out: Path, pack: Pack) -> None:
        self._out = out
        self._pack = pack
        self._parts = parts_folder(out)

    def is_complete(self) -> bool:
        """Return whether the container exists; removes parts that a killed process left beside it."""
        if not self._out.exists():
            return False
        shutil.rmtree(self._parts, ignore_errors=True)
        return True

    def has(self, split: CalvinSplit, number: int) -> bool:
        """Return whether this recording is complete."""
        return self._part(split, number).is_file()

    def add(self, split: CalvinSplit, number: int, recording: RecordedDemonstration) -> None:
        """Store recording `number` of a split, its images as JPEG.

        Args:
            split: the split that it belongs to.
            number: of the recording within its split, part of the file's name.
            recording: of L control steps; `rgb_static` and `commanded_actions` [L, A] are kept of its arrays.
        """
        # JPEG keeps the parts small.
        jpegs = [np.frombuffer(encode_jpeg(image), dtype=np.uint8) for image in recording.arrays["rgb_static"]]
        labels = [dataclasses.asdict(label) for label in recording.labels]
        about = {"scene": recording.scene, "hz": recording.hz, "labels": labels, "failed": recording.failed}
        if recording.annotations:
            about["annotations"] = recording.annotations
        # The file appears under its name only when it is complete (write_arrays), which `has` relies on.
        path = self._part(split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "jpeg": np.concatenate(jpegs),
            "sizes": np.array([len(jpeg) for jpeg in jpegs]),
            "actions": recording.arrays["commanded_actions"],
            "about": np.array(json.dumps(about)),
        }
        write_arrays(path, arrays)

    def outcomes(self, split: CalvinSplit) -> Iterator[Outcome]:
        """Yield the outcome of each recording."""
        for path in self._paths(split):
            about = _read_part(path).about
            yield Outcome(tuple(label["task"] for label in about["labels"]), tuple(about["failed"]))

    def finish(self, splits: list[CalvinSplit]) -> None:
        """Write the container and remove the parts."""
        self._pack(self._out, {split: self._paths(split) for split in splits})
        shutil.rmtree(self._parts)

    def _paths(self, split: CalvinSplit) -> list[Path]:
        return sorted((self._parts / split).glob("part_*.npz"))

    def _part(self, split: CalvinSplit, number: int) -> Path:
        return self._parts / split / f"part_{number:07d}.npz"


Output = CalvinOutput | PartsOutput


def parts_folder(out: Path) -> Path:
    """Return the folder of the recordings of a container."""
    return out.with_name(out.name + ".parts")


def parts_output(form: Literal["rlds", "video"], out: Path, *, world: str, actions: str) -> PartsOutput:
    """Return the output for a format that is a container.

    Args:
        form: the format.
        out: the container.
        world: as `RecordConfig.world`, part of the name of an RLDS data set.
        actions: what its actions are.
    """
    return PartsOutput(out, functools.partial(pack_rlds, world, actions) if form == "rlds" else pack_videos)


def pack_rlds(world: str, actions: str, out: Path, parts: dict[CalvinSplit, list[Path]]) -> None:
    """Write an RLDS data set, one episode per window.

    Args:
        world: part of the name of the data set.
        actions: what its actions are.
        out: its folder.
        parts: the stored recordings of each split.
    """
    # Imported here, because it needs TensorFlow.
    from vw2_robot.data.rlds_writer import write_rlds

    def demonstrations(paths: list[Path]) -> Iterator[Demonstration]:
        # One recording in memory at a time.
        for path in paths:
            part = _read_part(path)
            yield from (_window(part, window) for window in range(len(part.about["labels"])))

    names = {"training": "train", "validation": "validation"}
    write_rlds(
        out,
        name=f"vw2_{world}",
        version=RLDS_VERSION,
        episodes={names[split]: demonstrations(paths) for split, paths in parts.items()},
        description=f"Scripted demonstrations from the vw2_robot {world} world; action: {actions}.",
    )


def pack_videos(out: Path, parts: dict[CalvinSplit, list[Path]]) -> None:
    """Write one mp4 per window, and `captions.jsonl`, one object a line: file, instruction, task, scene, hz, frames.

    Where the recorder chose among several ways, each line has the way, too; of block building it has the key frames.
    """
    # The folder gets its name when it is complete.
    with atomic_folder(out) as temporary:
        for split, paths in parts.items():
            (temporary / split).mkdir(parents=True)
            lines = []
            for path in paths:
                part = _read_part(path)
                for window, label in enumerate(part.about["labels"]):
                    episode = _episode(part, window)
                    name = f"video_{_window_name(part, window)}.mp4"
                    # bitexact: equal images give equal bytes
                    encoding = ["-crf", "15", "-bitexact", "-map_metadata", "-1"]
                    with Mp4Writer(temporary / split / name, fps=episode.hz, encoding=encoding) as video:
                        for index in range(len(episode)):
                            video.add(episode.decode(index))
                    caption = {"instruction": label["instruction"], "task": label["task"], "scene": part.about["scene"]}
                    if way := label.get("way"):  # parts of an earlier release state none
                        caption["way"] = way
                    facts = {"hz": episode.hz, "frames": len(episode), **part.about.get("annotations", {})}
                    lines.append(json.dumps({"file": name, **caption, **facts}))
            write_text(temporary / split / "captions.jsonl", "\n".join(lines) + "\n")


@dataclass(frozen=True)
class _Part:
    """One stored recording of a container."""

    path: Path
    about: dict[str, Any]
    jpegs: tuple[bytes, ...]
    actions: NDArray[np.float64]


def _read_part(path: Path) -> _Part:
    """Return a stored recording, or raise an `InputError` that names a damaged file."""
    cure = "delete it and start vw2-record again, which makes this recording again"
    part = read_arrays(path, ("jpeg", "sizes", "actions", "about"), cure=cure)
    try:
        jpegs = np.split(part["jpeg"], np.cumsum(part["sizes"])[:-1])
        return _Part(path, json.loads(str(part["about"])), tuple(jpeg.tobytes() for jpeg in jpegs), part["actions"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no recording of a container ({error}); {cure}") from error


def _window(part: _Part, window: int) -> Demonstration:
    """Return labeled window number `window` of a recording, with its actions."""
    label = part.about["labels"][window]
    actions = part.actions[label["start"] : label["end"] + 1]
    return Demonstration(episode=_episode(part, window), actions=actions, way=label.get("way", ""))


def _episode(part: _Part, window: int) -> Episode:
    """Return the video of labeled window number `window` of a recording."""
    # `end` is the last step of the window, inclusive.
    label = part.about["labels"][window]
    return Episode(
        source=f"vw2_{part.about['scene']}",
        episode_id=f"{part.path.parent.name}/{_window_name(part, window)}",
        instruction=label["instruction"],
        hz=part.about["hz"],
        images=part.jpegs[label["start"] : label["end"] + 1],
    )


def _window_name(part: _Part, window: int) -> str:
    """Return the number of the recording; of play, also that of the window."""
    number = part.path.stem.removeprefix("part_")
    return number if len(part.about["labels"]) == 1 else f"{number}_{window}"
