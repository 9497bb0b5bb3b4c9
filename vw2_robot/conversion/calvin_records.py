"""A CALVIN data set as records: each labeled window, or each segment of a recording, is an episode.

`action` is what fine-tuning learns: the commands where the recorder stored them, else `rel_actions`, as float32 and
with -1 for a closed gripper. The arrays themselves follow as `calvin.rel_actions` and so on, exactly as stored. Depth
and tactile images are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from vw2_robot.data.calvin_writer import LATENT_TOKENS, SOURCE_ACTIONS
from vw2_robot.data.episodes import Episode, Part
from vw2_robot.data.sources.calvin import CalvinDataset, CalvinSplit, TrajectoryKind, frame_name
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import array_names

from .records import ACTION_COLUMN, LATENT_COLUMN, STATE_COLUMN, Numbers, Record

PREFIX = "calvin."
ARRAYS = ("rel_actions", "commanded_actions", "actions", "robot_obs", "scene_obs")
SPLITS: dict[CalvinSplit, str] = {"training": "train", "validation": "validation"}
"""CALVIN's name of a split -> its name elsewhere"""


class CalvinRecords:
    """The splits of a CALVIN data set; a part is one trajectory."""

    def __init__(
        self,
        path: Path,
        *,
        splits: Sequence[str] | None,
        trajectories: TrajectoryKind,
        camera: str | None,
        hz: float | None = None,
    ) -> None:
        """Read the labels, or the tables of recordings, and check that all frames exist.

        Args:
            path: folder of the data set.
            splits: `train`, `validation`, or CALVIN's names; all that are there if None.
            trajectories: labeled windows, or whole recordings.
            camera: `static` or `gripper` alone; None: those that are there.
            hz: rate of the time steps; None: what the data set states.

        Raises:
            InputError: a split is missing or damaged, or there is no such camera.
        """
        there = [split for split in get_args(CalvinSplit) if (path / split).is_dir()]
        wanted = [next((k for k, v in SPLITS.items() if name in (k, v)), name) for name in splits or there]
        if missing := [split for split in wanted if split not in there]:
            raise InputError(f"{path} has no split {missing[0]!r}; it has {', '.join(there) or 'none'}")
        self.name = path.resolve().name
        self.path = path
        self._datasets = [CalvinDataset(path, split, trajectories=trajectories) for split in there if split in wanted]
        self._hz = hz or self._datasets[0].robot.hz
        self._places = [(dataset, one) for dataset in self._datasets for one in dataset.trajectories]
        dataset, first = self._places[0]
        names = array_names(dataset.folder / frame_name(first.start), cure="restore it, or leave it out")
        self._cameras = [name for name in ("static", "gripper") if f"rgb_{name}" in names and camera in (None, name)]
        if not self._cameras:
            raise InputError(f"{path} has no camera {camera or 'static'!r}; its time steps hold {', '.join(names)}")
        self._arrays = [name for name in (*ARRAYS, SOURCE_ACTIONS, LATENT_TOKENS) if name in names]

    def parts(self) -> list[tuple[str, Part]]:
        """Return the split and the description of each trajectory."""
        return [(SPLITS[dataset.split], Part(one.trajectory_id, 1)) for dataset, one in self._places]

    def read(self, part: int, *, start: int = 0) -> Iterator[Record]:
        """Yield the trajectory, unless `start` is beyond it."""
        if start > 0:
            return
        dataset, trajectory = self._places[part]
        keys = [*(f"rgb_{name}" for name in self._cameras), *self._arrays]
        if {"rel_actions", "commanded_actions"} & set(self._arrays):
            actions, *values = dataset.read_actions_and(trajectory, *keys)
            found = dict(zip(keys, values, strict=True))
            numbers: dict[str, Numbers] = {ACTION_COLUMN: actions}
        else:
            found = dict(zip(keys, dataset.read_together(trajectory, keys), strict=True))
            numbers = {}
        if SOURCE_ACTIONS in found:
            # Converted before: the numbers of that data set, not those scaled for CALVIN's readers.
            numbers[ACTION_COLUMN] = smallest_float(found.pop(SOURCE_ACTIONS))
            found.pop("rel_actions", None)
        if LATENT_TOKENS in found:
            numbers[LATENT_COLUMN] = found.pop(LATENT_TOKENS)
        if "robot_obs" in found:
            numbers[STATE_COLUMN] = found["robot_obs"].astype(np.float32)
        numbers |= {f"{PREFIX}{name}": found[name] for name in ARRAYS if name in found}
        yield Record(
            split=SPLITS[dataset.split],
            cameras={
                name: Episode(
                    self.name,
                    trajectory.trajectory_id,
                    trajectory.instruction,
                    self._hz,
                    tuple(found[f"rgb_{name}"]),
                )
                for name in self._cameras
            },
            numbers=numbers,
            texts={"task": trajectory.task, "scene": trajectory.scene, "way": trajectory.way},
        )


def smallest_float(values: Numbers) -> Numbers:
    """Return numbers as float32 if that keeps every bit of them, else as they are."""
    small = values.astype(np.float32)
    return small if np.array_equal(small.astype(values.dtype), values) else values
