"""CALVIN on disk, read: language-labelled trajectories, their pictures, and (only when asked) their actions.

A CALVIN data set is a folder with `training/` and `validation/`; each holds one `episode_XXXXXXX.npz` per 30 Hz time
step and the labels `lang_annotations/auto_lang_ann.npy`. A trajectory is one labelled window of time steps. This file
serves both sides of the method: fine-tuning reads pictures and actions of the labelled trajectories it was given,
pre-training reads pictures alone. Each member of an npz lies in its own compressed stream, and only the member asked
for is opened: an unlabelled trajectory's actions may be missing or poisoned without anyone noticing. `reads` counts
what was opened, so that this can be tested.

Every frame that any trajectory needs is looked for before work starts. Writing is in `calvin_writer.py`.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX
from vw2_robot.errors import InputError

from .episodes import Episode
from .object_arrays import load_object

CALVIN_HZ = 30.0
CalvinSplit = Literal["training", "validation"]

LAYOUT = """expected layout:
  <data set>/training/episode_0000000.npz, episode_0000001.npz, ...   one file per time step
  <data set>/training/lang_annotations/auto_lang_ann.npy              instructions, tasks, first and last frames
  <data set>/validation/...                                           the same"""


@dataclass(frozen=True)
class Trajectory:
    """One labelled window: frames `start` to `end`, both included, of one split."""

    trajectory_id: str
    task: str
    instruction: str
    start: int
    end: int
    scene: str
    """Letter of the CALVIN scene, or "unknown" where the data set has no table of scenes."""

    @property
    def length(self) -> int:
        """Number of time steps."""
        return self.end - self.start + 1


class CalvinDataset:
    """The labelled trajectories of one split.

    `reads` counts opened arrays by name ("rgb_static", "rel_actions", ...), one per time step.
    """

    def __init__(self, path: str | Path, split: CalvinSplit = "training") -> None:
        """Read the labels and check that every frame they speak of is there.

        Raises:
            InputError: a folder, the labels or frames are missing; the message shows what and the expected layout.
        """
        self.path = Path(path)
        self.folder = self.path / split
        self.split = split
        self.reads: Counter[str] = Counter()
        self.trajectories = _read_trajectories(self.path, split)
        _check_complete(self.folder, self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    def read(self, trajectory: Trajectory, key: str, frames: Sequence[int] | None = None) -> NDArray[Any]:
        """Return array `key` of the time steps `frames` (0 = first of the trajectory; None = all), stacked.

        No other array of these files is opened.
        """
        offsets = range(trajectory.length) if frames is None else frames
        for offset in offsets:
            if not 0 <= offset < trajectory.length:
                raise IndexError(f"frame {offset} of {trajectory.trajectory_id}, which has {trajectory.length} frames")
        values = [self._member(trajectory.start + int(offset), key) for offset in offsets]
        for offset, value in zip(offsets, values, strict=True):
            if (value.dtype, value.shape) != (values[0].dtype, values[0].shape):
                raise InputError(
                    f"{self.folder / frame_name(trajectory.start + int(offset))}: {key} is {value.dtype} {value.shape},"
                    f" in the steps before it {values[0].dtype} {values[0].shape}; mend or remove this trajectory"
                )
        return np.stack(values)

    def read_images(
        self, trajectory: Trajectory, frames: Sequence[int] | None = None, *, camera: str = "static"
    ) -> NDArray[np.uint8]:
        """Return uint8 [n, H, W, 3] pictures at the given offsets (None = all); opens nothing but the pictures."""
        images = self.read(trajectory, f"rgb_{camera}", frames)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"{self.folder}, {trajectory.trajectory_id}: rgb_{camera} is {images.dtype} {images.shape[1:]},"
                " expected uint8 (height, width, 3)"
            )
        return images

    def read_actions(self, trajectory: Trajectory) -> NDArray[np.float32]:
        """Return float32 [L, 7] relative actions (`vw2_robot.contracts`); opens nothing but `rel_actions`.

        Old files mark a closed gripper with 0; it becomes -1.
        """
        actions = self.read(trajectory, "rel_actions").astype(np.float32)
        where = f"{self.folder}, {trajectory.trajectory_id}: rel_actions"
        if actions.shape[1:] != (ACTION_DIM,):
            raise InputError(f"{where} has shape {actions.shape[1:]} per step, expected ({ACTION_DIM},)")
        if not np.isfinite(actions).all():
            first = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise InputError(
                f"{where} is not finite at frame {trajectory.start + first}; mend or remove this trajectory"
            )
        actions[actions[:, GRIPPER_INDEX] == 0, GRIPPER_INDEX] = -1
        return actions

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

    def _member(self, frame: int, key: str) -> NDArray[Any]:
        path = self.folder / frame_name(frame)
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if key not in file.files:
                    raise InputError(f"{path} holds no {key}; it holds {', '.join(sorted(file.files))}")
                self.reads[key] += 1
                value: NDArray[Any] = file[key]
                return value
        except FileNotFoundError:
            raise InputError(f"{path} has disappeared since the data set was opened") from None
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: {key} cannot be read ({error}); the file is damaged, restore or remove it"
            ) from error


def frame_name(frame: int) -> str:
    """Return the file name of one time step."""
    return f"episode_{frame:07d}.npz"


def _read_trajectories(root: Path, split: str) -> list[Trajectory]:
    folder = root / split
    labels = folder / "lang_annotations" / "auto_lang_ann.npy"
    for needed in (root, folder, labels.parent):
        if not needed.is_dir():
            raise InputError(
                f"{needed} is not a folder, so {root} is no CALVIN data set with a split {split!r}; {LAYOUT}"
            )
    if not labels.is_file():
        raise InputError(f"{labels} is missing: trajectories need language labels; {LAYOUT}")
    content = load_object(labels)
    try:
        sentences, tasks = content["language"]["ann"], content["language"]["task"]
        windows = [(int(first), int(last)) for first, last in content["info"]["indx"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{labels}: expected {{"language": {{"ann", "task"}}, "info": {{"indx"}}}}, reading failed with {error!r}'
        ) from error
    if not len(sentences) == len(tasks) == len(windows):
        raise InputError(
            f"{labels}: {len(sentences)} sentences, {len(tasks)} tasks, {len(windows)} windows; expected equal numbers"
        )
    if not windows:
        raise InputError(f"{labels} holds no trajectory")
    scenes = _scene_ranges(folder / "scene_info.npy")
    seen: Counter[str] = Counter()
    trajectories = []
    for sentence, task, (first, last) in zip(sentences, tasks, windows, strict=True):
        if not 0 <= first <= last:
            raise InputError(f"{labels}: window ({first}, {last}) of task {task!r} is empty or negative")
        name = f"{split}/{first:07d}-{last:07d}/{task}"
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}/{seen[name]}"
        trajectories.append(Trajectory(unique, str(task), str(sentence), first, last, _scene_of(first, scenes)))
    return trajectories


def _scene_ranges(path: Path) -> list[tuple[str, int, int]]:
    if not path.is_file():
        return []
    table = load_object(path)
    try:
        return [(str(name).removeprefix("calvin_scene_"), int(a), int(b)) for name, (a, b) in table.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a dict of scene name -> [first, last] frame, found {table!r}") from error


def _scene_of(frame: int, scenes: list[tuple[str, int, int]]) -> str:
    return next((name for name, first, last in scenes if first <= frame <= last), "unknown")


def _check_complete(folder: Path, trajectories: list[Trajectory]) -> None:
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries if entry.name.startswith("episode_")}
    wanted = {frame for t in trajectories for frame in range(t.start, t.end + 1)}
    missing = sorted(frame for frame in wanted if frame_name(frame) not in present)
    if missing:
        first = next(t for t in trajectories if t.start <= missing[0] <= t.end)
        raise InputError(
            f"{folder}: {len(missing)} of {len(wanted)} labelled frames are missing, the first is"
            f" {frame_name(missing[0])} (needed by {first.trajectory_id}); the download or copy is incomplete; {LAYOUT}"
        )
