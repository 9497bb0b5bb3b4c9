"""Reader of CALVIN data sets: language-labeled trajectories, their images, and (only on request) their actions.

A CALVIN data set is a folder with `training/` and `validation/`; each holds one `episode_XXXXXXX.npz` per time step
and the labels `lang_annotations/auto_lang_ann.npy`. A trajectory is one labeled window of time steps. Fine-tuning
reads images and actions of the labeled trajectories, pre-training reads images only. Each array of an npz is a separate
compressed stream, and only the requested arrays are opened: the actions of an unlabeled trajectory may be missing or
wrong. `reads` counts the opened arrays, so that this can be tested.

`trajectories="recordings"` gives the play data instead, for pre-training on video: every recording from beginning to
end, cut into segments, without instruction; no labels are needed then.

All needed frames are checked to exist at the beginning. `calvin_scenes.py` finds the scene of a frame;
`calvin_writer.py` writes data sets. Data of another robot may lie in this layout, too (`recorded_robot.py`).
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

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import array_names, read_array, read_arrays
from vw2_robot.storage.files import MANIFEST, verify

from ..episodes import Episode
from .calvin_scenes import SceneRanges
from .object_arrays import load_object
from .recorded_robot import CALVIN, read_robot

CalvinSplit = Literal["training", "validation"]
TrajectoryKind = Literal["labeled", "recordings"]
SEGMENT_FRAMES = 512
"""Length of the segments of a recording: published ones last many minutes, and images of an episode lie in memory."""
_RESTORE = "restore it, or leave it out"
_RESTORE_INDEX = f"restore it; if you changed it yourself, delete {MANIFEST} beside it"

LAYOUT = """expected layout:
  <data set>/training/episode_0000000.npz, episode_0000001.npz, ...   one file per time step
  <data set>/training/lang_annotations/auto_lang_ann.npy              instructions, tasks, first and last frames
  <data set>/training/ep_start_end_ids.npy                            first and last frame of each recording
  <data set>/validation/...                                           the same"""


@dataclass(frozen=True)
class Trajectory:
    """Frames `start` to `end`, both included, of one split: a labeled window, or a segment of play data."""

    trajectory_id: str
    task: str
    instruction: str
    start: int
    end: int
    scene: str
    """Letter of the CALVIN scene, or "unknown"."""
    way: str = ""
    """How the task was done, where the recorder states it."""

    @property
    def length(self) -> int:
        """Number of time steps."""
        return self.end - self.start + 1


class CalvinDataset:
    """The trajectories of one split.

    Attributes:
        trajectories: in the order of the labels or of the recordings.
        robot: what the data set states about rate, camera and actions.
        reads: counts opened arrays by name ("rgb_static", "rel_actions", ...), one per time step.
    """

    def __init__(
        self, path: str | Path, split: CalvinSplit = "training", *, trajectories: TrajectoryKind = "labeled"
    ) -> None:
        """Read the labels, or the table of recordings, and check that all their frames exist.

        Args:
            path: folder of the data set.
            split: `training` or `validation`.
            trajectories: `labeled` windows, or segments of whole `recordings`.

        Raises:
            InputError: a folder, the labels or frames are missing; the message shows the expected layout.
        """
        self.path = Path(path)
        self.folder = self.path / split
        self.split = split
        self.reads: Counter[str] = Counter()
        self.robot = read_robot(self.path)
        self._action_key: str | None = None
        if trajectories not in get_args(TrajectoryKind):
            raise InputError(f"unknown trajectories {trajectories!r}; known: {', '.join(get_args(TrajectoryKind))}")
        for needed in (self.path, self.folder):
            if not needed.is_dir():
                raise InputError(
                    f"{needed} is not a folder, so {self.path} is no CALVIN data set with a split {split!r}; {LAYOUT}"
                )
        read_table = _read_labels if trajectories == "labeled" else _read_recordings
        verify(self.folder, cure=_RESTORE_INDEX, names=("scene_info.npy",))
        scenes = SceneRanges(self.folder / "scene_info.npy", is_validation=split == "validation")
        self.trajectories = read_table(self.folder, split, scenes)
        # One warning for all, not one for each trajectory.
        scenes.warn_about(trajectory.start for trajectory in self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    def read(self, trajectory: Trajectory, key: str, frame_ids: Sequence[int] | None = None) -> NDArray[Any]:
        """Return array `key` of the time steps `frame_ids` (0 = first of the trajectory; None = all), stacked.

        No other array of these files is opened.

        Args:
            trajectory: of this split.
            key: name of the array, as "rgb_static" or "rel_actions".
            frame_ids: n offsets from the first frame of the trajectory, in [0, length); None: all.

        Returns:
            [n, ...], with the shape of one time step and the dtype of the files.

        Raises:
            IndexError: an offset lies outside the trajectory.
            InputError: as from `read_together`.
        """
        return self.read_together(trajectory, (key,), frame_ids)[0]

    def read_together(
        self, trajectory: Trajectory, keys: Sequence[str], frame_ids: Sequence[int] | None = None
    ) -> tuple[NDArray[Any], ...]:
        """Return several arrays, each as from `read`; each file is opened once.

        Args:
            trajectory: of this split.
            keys: names of the arrays.
            frame_ids: n offsets from the first frame of the trajectory, in [0, length); None: all.

        Returns:
            One array [n, ...] for each of `keys`, in their order.

        Raises:
            IndexError: an offset lies outside the trajectory.
            InputError: a file is damaged, or an array changes its shape or dtype within the trajectory.
        """
        offsets = range(trajectory.length) if frame_ids is None else frame_ids
        # The frames of all trajectories lie in one folder: a wrong offset would read a neighbor without an error.
        for offset in offsets:
            if not 0 <= offset < trajectory.length:
                raise IndexError(f"frame {offset} of {trajectory.trajectory_id}, which has {trajectory.length} frames")
        rows: list[list[NDArray[Any]]] = []
        for offset in offsets:
            found = read_arrays(self.folder / frame_name(trajectory.start + int(offset)), keys, cure=_RESTORE)
            self.reads.update(keys)
            rows.append([found[key] for key in keys])
        # np.stack would raise an error that does not name the file.
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
        """Return uint8 [n, H, W, 3] images at the given offsets (None = all); opens nothing but the images.

        Args:
            trajectory: of this split.
            frame_ids: n offsets from the first frame of the trajectory, in [0, length); None: all.
            camera: name of the camera; the array is "rgb_" and this name.

        Raises:
            IndexError: an offset lies outside the trajectory.
            InputError: the array is not uint8 [H, W, 3] per time step, or as from `read_together`.
        """
        images = self.read(trajectory, f"rgb_{camera}", frame_ids)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"{self.folder}, {trajectory.trajectory_id}: rgb_{camera} is {images.dtype} {images.shape[1:]},"
                " expected uint8 (height, width, 3)"
            )
        return images

    def read_actions(self, trajectory: Trajectory) -> NDArray[np.float32]:
        """Return the float32 [L, A] actions, those of `robot.action`; opens no other array.

        These are the `commanded_actions` if the data set has them (recordings of this package), else `rel_actions`. Old
        files of CALVIN store 0 for a closed gripper; it becomes -1.
        """
        return self.read_actions_and(trajectory)[0]

    def read_actions_and(self, trajectory: Trajectory, *more: str) -> tuple[NDArray[Any], ...]:
        """Return the actions as `read_actions`, then other arrays; each file is opened once."""
        if self._action_key is None:
            # One frame shows which arrays the data set has; none of them is opened.
            commanded = self.holds(trajectory, "commanded_actions")
            self._action_key = "commanded_actions" if commanded else "rel_actions"
        key = self._action_key
        raw, *others = self.read_together(trajectory, (key, *more))
        where = f"{self.folder}, {trajectory.trajectory_id}: {key}"
        space = self.robot.action
        if raw.shape[1:] != (space.size,) or raw.dtype.kind not in "fiu":
            raise InputError(f"{where} is {raw.dtype} {raw.shape[1:]} per step, expected numbers ({space.size},)")
        actions = raw.astype(np.float32)
        if not np.isfinite(actions).all():
            first = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise InputError(
                f"{where} is not finite at frame {trajectory.start + first}; mend or remove this trajectory"
            )
        # Older releases of the data sets store 0 for a closed gripper.
        if (gripper := space.gripper_index) is not None:
            actions[actions[:, gripper] == 0, gripper] = -1
        return actions, *others

    def holds(self, trajectory: Trajectory, key: str) -> bool:
        """Return whether the first frame of the trajectory has array `key`; opens none."""
        return key in array_names(self.folder / frame_name(trajectory.start), cure=_RESTORE)

    def episodes(self) -> Iterator[Episode]:
        """Yield every trajectory as video with its instruction; actions are not read."""
        for trajectory in self.trajectories:
            images = self.read_images(trajectory)
            yield Episode(
                source=self.source_name(trajectory),
                episode_id=trajectory.trajectory_id,
                instruction=trajectory.instruction,
                hz=self.robot.hz,
                images=tuple(images),
            )

    def source_name(self, trajectory: Trajectory) -> str:
        """Return the name of the source of a trajectory, that of the robot; CALVIN's also has the scene."""
        return f"{CALVIN}_{trajectory.scene}" if self.robot.name == CALVIN else self.robot.name


def frame_name(frame: int) -> str:
    """Return the file name of one time step."""
    return f"episode_{frame:07d}.npz"


def _read_labels(folder: Path, split: str, scenes: SceneRanges) -> list[Trajectory]:
    """Return the labeled windows of a split."""
    labels = folder / "lang_annotations" / "auto_lang_ann.npy"
    if not labels.is_file():
        raise InputError(f"{labels} is missing: trajectories need language labels; {LAYOUT}")
    verify(folder, cure=_RESTORE_INDEX, names=(labels.relative_to(folder).as_posix(),))
    content = load_object(labels)
    try:
        instructions = list(content["language"]["ann"])
        tasks = list(content["language"]["task"])
        windows = [(int(first), int(last)) for first, last in content["info"]["indx"]]
        ways = list(content["language"].get("way", [""] * len(tasks)))
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(
            f'{labels}: expected {{"language": {{"ann", "task"}}, "info": {{"indx"}}}}, reading failed with {error!r}'
        ) from error
    if not len(instructions) == len(tasks) == len(windows) == len(ways):
        raise InputError(
            f"{labels}: {len(instructions)} instructions, {len(tasks)} tasks, {len(windows)} windows, {len(ways)} "
            "ways; expected equal numbers"
        )
    if not windows:
        raise InputError(f"{labels} holds no trajectory")
    seen: Counter[str] = Counter()
    trajectories = []
    for *texts, (first, last) in zip(instructions, tasks, ways, windows, strict=True):
        text, task, way = (_text(value, f"{labels}, window ({first}, {last})") for value in texts)
        if not 0 <= first <= last:
            raise InputError(f"{labels}: window ({first}, {last}) of task {task!r} is empty or negative")
        # Identifiers must be unique; a window may be labeled with one task several times.
        name = f"{split}/{first:07d}-{last:07d}/{task}"
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}/{seen[name]}"
        trajectories.append(Trajectory(unique, task, text, first, last, scenes.scene_of(first), way))
    _check_complete(folder, trajectories)
    return trajectories


def _text(value: Any, where: str) -> str:
    """Return an instruction or a task as text; some converters store bytes, or a list with one entry."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    elif isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        raise InputError(
            f"{where}: expected text for instruction and task, found {type(value).__name__}; mend the labels"
        )
    return str(value)


def read_spans(folder: Path) -> NDArray[np.integer[Any]]:
    """Return first and last frame of each recording of a split, [recordings, 2].

    Raises:
        InputError: the table is missing or damaged.
    """
    path = folder / "ep_start_end_ids.npy"
    if not path.is_file():
        raise InputError(f"{path} is missing: it lists where recordings begin and end; {LAYOUT}")
    verify(folder, cure=_RESTORE_INDEX, names=(path.name,))
    table = read_array(path, cure=_RESTORE_INDEX)
    if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
        raise InputError(f"{path}: expected whole numbers (recordings, 2), first and last frame of each")
    if not len(table) or (table[:, 0] > table[:, 1]).any() or table.min() < 0:
        raise InputError(f"{path}: expected at least one recording, each with 0 <= first <= last frame")
    return table


def _read_recordings(folder: Path, split: str, scenes: SceneRanges) -> list[Trajectory]:
    """Return the segments of all recordings of a split."""

    def play(first: int, last: int) -> Trajectory:
        return Trajectory(f"{split}/{first:07d}-{last:07d}/play", "", "", first, last, scenes.scene_of(first))

    recordings = [play(first, last) for first, last in read_spans(folder).tolist()]
    _check_complete(folder, recordings)  # before they are cut: a damaged table may list any number of frames
    return [
        play(start, min(start + SEGMENT_FRAMES - 1, whole.end))
        for whole in recordings
        for start in range(whole.start, whole.end + 1, SEGMENT_FRAMES)
    ]


def _check_complete(folder: Path, trajectories: list[Trajectory]) -> None:
    """Check that every frame of the trajectories exists; the folder is listed once, since it may hold millions.

    Raises:
        InputError: frames are missing.
    """
    with os.scandir(folder) as entries:
        # Names as `frame_name` writes them: seven digits, or more without a leading zero.
        names = (re.fullmatch(r"episode_(\d{7}|[1-9]\d{7,17})\.npz", entry.name) for entry in entries)
        present = sorted(int(name[1]) for name in names if name)
    wanted = 0
    missing = 0
    done = -1  # all frames up to here are counted
    first = ""
    for trajectory in sorted(trajectories, key=lambda trajectory: trajectory.start):
        start = max(trajectory.start, done + 1)  # windows may overlap
        # Existing frames of the window, by binary search in the sorted list of all.
        here = present[bisect_left(present, start) : bisect_right(present, trajectory.end)]
        length = max(0, trajectory.end + 1 - start)
        if len(here) < length and not missing:
            # The first gap is named in the message.
            gap = next((i for i, frame in enumerate(here) if frame != start + i), len(here))
            first = f"{frame_name(start + gap)} (needed by {trajectory.trajectory_id})"
        wanted += length
        missing += length - len(here)
        done = max(done, trajectory.end)
    if missing:
        raise InputError(
            f"{folder}: {missing} of {wanted} frames are missing, the first is {first}; the download or copy is"
            f" incomplete; {LAYOUT}"
        )
