"""CALVIN on disk, read: language-labeled trajectories, their images, and (only when asked) their actions.

A CALVIN data set is a folder with `training/` and `validation/`; each holds one `episode_XXXXXXX.npz` per 30 Hz time
step and the labels `lang_annotations/auto_lang_ann.npy`. A trajectory is one labeled window of time steps. This file
serves both sides of the method: fine-tuning reads images and actions of the labeled trajectories it was given,
pre-training reads images alone. Each member of an npz lies in its own compressed stream, and only the member asked
for is opened: an unlabeled trajectory's actions may be missing or poisoned without anyone noticing. `reads` counts
what was opened, so that this can be tested.

`trajectories="recordings"` gives the play itself instead, for pre-training on video: every recording from end to end,
in pieces, without words; no labels are needed then.

Every frame that any trajectory needs is looked for before work starts. Which scene a frame shows is found out in
`calvin_scenes.py`; writing is in `calvin_writer.py`.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import array_names, read_array, read_arrays
from vw2_robot.storage.files import MANIFEST, verify

from ..episodes import Episode
from .calvin_scenes import SceneRanges
from .object_arrays import load_object

CALVIN_HZ = 30.0
CalvinSplit = Literal["training", "validation"]
TrajectoryKind = Literal["labeled", "recordings"]
PIECE_FRAMES = 512
"""Longest piece of a recording: published ones last many minutes, and an episode's images are held in memory."""
_RESTORE = "restore it, or leave it out"
_RESTORE_INDEX = f"restore it; if you changed it yourself, delete {MANIFEST} beside it"

LAYOUT = """expected layout:
  <data set>/training/episode_0000000.npz, episode_0000001.npz, ...   one file per time step
  <data set>/training/lang_annotations/auto_lang_ann.npy              instructions, tasks, first and last frames
  <data set>/training/ep_start_end_ids.npy                            first and last frame of each recording
  <data set>/validation/...                                           the same"""


@dataclass(frozen=True)
class Trajectory:
    """Frames `start` to `end`, both included, of one split: a labeled window, or a piece of play without words."""

    trajectory_id: str
    task: str
    instruction: str
    start: int
    end: int
    scene: str
    """Letter of the CALVIN scene, or "unknown" where the data set does not tell."""

    @property
    def length(self) -> int:
        """Number of time steps."""
        return self.end - self.start + 1


class CalvinDataset:
    """The trajectories of one split.

    `reads` counts opened arrays by name ("rgb_static", "rel_actions", ...), one per time step.
    """

    def __init__(
        self, path: str | Path, split: CalvinSplit = "training", *, trajectories: TrajectoryKind = "labeled"
    ) -> None:
        """Read the labels, or the table of recordings, and check that every frame they speak of is there.

        Raises:
            InputError: a folder, the labels or frames are missing; the message shows what and the expected layout.
        """
        self.path = Path(path)
        self.folder = self.path / split
        self.split = split
        self.reads: Counter[str] = Counter()
        self._action_key: str | None = None
        if trajectories not in get_args(TrajectoryKind):
            raise InputError(f"unknown trajectories {trajectories!r}; known: {', '.join(get_args(TrajectoryKind))}")
        _check_folders(self.path, split)
        read_table = _read_labels if trajectories == "labeled" else _read_recordings
        verify(self.folder, cure=_RESTORE_INDEX, names=("scene_info.npy",))
        scenes = SceneRanges(self.folder / "scene_info.npy", is_validation=split == "validation")
        self.trajectories = read_table(self.folder, split, scenes)
        scenes.warn_about(trajectory.start for trajectory in self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    def read(self, trajectory: Trajectory, key: str, frame_ids: Sequence[int] | None = None) -> NDArray[Any]:
        """Return array `key` of the time steps `frames` (0 = first of the trajectory; None = all), stacked.

        No other array of these files is opened.
        """
        return self.read_together(trajectory, (key,), frame_ids)[0]

    def read_together(
        self, trajectory: Trajectory, keys: Sequence[str], frame_ids: Sequence[int] | None = None
    ) -> tuple[NDArray[Any], ...]:
        """`read` of several arrays; each file is opened once."""
        offsets = range(trajectory.length) if frame_ids is None else frame_ids
        for offset in offsets:
            if not 0 <= offset < trajectory.length:
                raise IndexError(f"frame {offset} of {trajectory.trajectory_id}, which has {trajectory.length} frames")
        rows = [self._members(trajectory.start + int(offset), keys) for offset in offsets]
        for offset, row in zip(offsets, rows, strict=True):
            for key, value, first in zip(keys, row, rows[0], strict=True):
                if (value.dtype, value.shape) != (first.dtype, first.shape):
                    raise InputError(
                        f"{self.folder / frame_name(trajectory.start + int(offset))}: {key} is {value.dtype}"
                        f" {value.shape}, in the steps before it {first.dtype} {first.shape}; mend or remove this"
                        " trajectory"
                    )
        return tuple(np.stack(column) for column in zip(*rows, strict=True))

    def read_images(
        self, trajectory: Trajectory, frame_ids: Sequence[int] | None = None, *, camera: str = "static"
    ) -> NDArray[np.uint8]:
        """Return uint8 [n, H, W, 3] images at the given offsets (None = all); opens nothing but the images."""
        images = self.read(trajectory, f"rgb_{camera}", frame_ids)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"{self.folder}, {trajectory.trajectory_id}: rgb_{camera} is {images.dtype} {images.shape[1:]},"
                " expected uint8 (height, width, 3)"
            )
        return images

    def read_actions(self, trajectory: Trajectory) -> NDArray[np.float32]:
        """Return float32 [L, 7] relative actions (`vw2_robot.contracts`); opens no other array.

        These are the `commanded_actions` of a data set that has them, a recording of ours, else `rel_actions`. Old
        files mark a closed gripper with 0; it becomes -1.
        """
        return self.read_actions_and(trajectory)[0]

    def read_actions_and(self, trajectory: Trajectory, *more: str) -> tuple[NDArray[Any], ...]:
        """`read_actions`, then other arrays out of the same look at the files."""
        key = self._action_key or self._find_action_key(trajectory)
        raw, *others = self.read_together(trajectory, (key, *more))
        where = f"{self.folder}, {trajectory.trajectory_id}: {key}"
        if raw.shape[1:] != (ACTION_DIM,) or raw.dtype.kind not in "fiu":
            raise InputError(f"{where} is {raw.dtype} {raw.shape[1:]} per step, expected numbers ({ACTION_DIM},)")
        actions = raw.astype(np.float32)
        if not np.isfinite(actions).all():
            first = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise InputError(
                f"{where} is not finite at frame {trajectory.start + first}; mend or remove this trajectory"
            )
        actions[actions[:, GRIPPER_INDEX] == 0, GRIPPER_INDEX] = -1
        return actions, *others

    def holds(self, trajectory: Trajectory, key: str) -> bool:
        """Whether the first frame of the trajectory has array `key`; opens none."""
        return key in array_names(self.folder / frame_name(trajectory.start), cure=_RESTORE)

    def episodes(self) -> Iterator[Episode]:
        """Yield every trajectory as video with its instruction; actions are not read."""
        for trajectory in self.trajectories:
            images = self.read_images(trajectory)
            yield Episode(
                source=f"calvin_{trajectory.scene}",
                episode_id=trajectory.trajectory_id,
                instruction=trajectory.instruction,
                hz=CALVIN_HZ,
                images=tuple(images),
            )

    def _find_action_key(self, trajectory: Trajectory) -> str:
        """Look which arrays the data set has, at one frame; opens none of them."""
        commanded = self.holds(trajectory, "commanded_actions")
        self._action_key = "commanded_actions" if commanded else "rel_actions"
        return self._action_key

    def _members(self, frame: int, keys: Sequence[str]) -> list[NDArray[Any]]:
        found = read_arrays(self.folder / frame_name(frame), keys, cure=_RESTORE)
        self.reads.update(keys)
        return [found[key] for key in keys]


def frame_name(frame: int) -> str:
    """Return the file name of one time step."""
    return f"episode_{frame:07d}.npz"


def _check_folders(root: Path, split: str) -> None:
    for needed in (root, root / split):
        if not needed.is_dir():
            raise InputError(
                f"{needed} is not a folder, so {root} is no CALVIN data set with a split {split!r}; {LAYOUT}"
            )


def _read_labels(folder: Path, split: str, scenes: SceneRanges) -> list[Trajectory]:
    labels = folder / "lang_annotations" / "auto_lang_ann.npy"
    if not labels.is_file():
        raise InputError(f"{labels} is missing: trajectories need language labels; {LAYOUT}")
    verify(folder, cure=_RESTORE_INDEX, names=(labels.relative_to(folder).as_posix(),))
    content = load_object(labels)
    try:
        sentences, tasks = list(content["language"]["ann"]), list(content["language"]["task"])
        windows = [(int(first), int(last)) for first, last in content["info"]["indx"]]
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f'{labels}: expected {{"language": {{"ann", "task"}}, "info": {{"indx"}}}}, reading failed with {error!r}'
        ) from error
    if not len(sentences) == len(tasks) == len(windows):
        raise InputError(
            f"{labels}: {len(sentences)} sentences, {len(tasks)} tasks, {len(windows)} windows; expected equal numbers"
        )
    if not windows:
        raise InputError(f"{labels} holds no trajectory")
    seen: Counter[str] = Counter()
    trajectories = []
    for sentence, label, (first, last) in zip(sentences, tasks, windows, strict=True):
        text, task = (_text(value, f"{labels}, window ({first}, {last})") for value in (sentence, label))
        if not 0 <= first <= last:
            raise InputError(f"{labels}: window ({first}, {last}) of task {task!r} is empty or negative")
        name = f"{split}/{first:07d}-{last:07d}/{task}"
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}/{seen[name]}"
        trajectories.append(Trajectory(unique, task, text, first, last, scenes.scene_of(first)))
    _check_complete(folder, trajectories)
    return trajectories


def _text(value: Any, where: str) -> str:
    """A sentence or a task: text, also as bytes or as the only entry of a list, as converters leave it."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    elif isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text for sentence and task, found {type(value).__name__}; mend the labels")
    return str(value)


def read_spans(folder: Path) -> NDArray[np.integer[Any]]:
    """First and last frame of each recording of a split, [recordings, 2].

    Raises:
        InputError: the table is missing or damaged.
    """
    path = folder / "ep_start_end_ids.npy"
    if not path.is_file():
        raise InputError(f"{path} is missing: it says where recordings begin and end; {LAYOUT}")
    verify(folder, cure=_RESTORE_INDEX, names=(path.name,))
    table = read_array(path, cure=_RESTORE_INDEX)
    if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
        raise InputError(f"{path}: expected whole numbers (recordings, 2), first and last frame of each")
    if not len(table) or (table[:, 0] > table[:, 1]).any() or table.min() < 0:
        raise InputError(f"{path}: expected at least one recording, each with 0 <= first <= last frame")
    return table


def _read_recordings(folder: Path, split: str, scenes: SceneRanges) -> list[Trajectory]:
    def play(first: int, last: int) -> Trajectory:
        return Trajectory(f"{split}/{first:07d}-{last:07d}/play", "", "", first, last, scenes.scene_of(first))

    recordings = [play(first, last) for first, last in read_spans(folder).tolist()]
    _check_complete(folder, recordings)  # before they are cut: a damaged table may speak of any number of frames
    return [
        play(start, min(start + PIECE_FRAMES - 1, whole.end))
        for whole in recordings
        for start in range(whole.start, whole.end + 1, PIECE_FRAMES)
    ]


def _check_complete(folder: Path, trajectories: list[Trajectory]) -> None:
    with os.scandir(folder) as entries:
        names = (re.fullmatch(r"episode_(\d{7}|[1-9]\d{7,17})\.npz", entry.name) for entry in entries)
        present = sorted(int(name[1]) for name in names if name)
    wanted, missing, done, first = 0, 0, -1, ""
    for trajectory in sorted(trajectories, key=lambda trajectory: trajectory.start):
        start = max(trajectory.start, done + 1)  # windows may overlap
        here = present[bisect_left(present, start) : bisect_right(present, trajectory.end)]
        length = max(0, trajectory.end + 1 - start)
        if len(here) < length and not missing:
            gap = next((i for i, frame in enumerate(here) if frame != start + i), len(here))
            first = f"{frame_name(start + gap)} (needed by {trajectory.trajectory_id})"
        wanted, missing, done = wanted + length, missing + length - len(here), max(done, trajectory.end)
    if missing:
        raise InputError(
            f"{folder}: {missing} of {wanted} frames are missing, the first is {first}; the download or copy is"
            f" incomplete; {LAYOUT}"
        )
