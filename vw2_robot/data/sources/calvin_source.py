"""A CALVIN data set as an `EpisodeSource` for pre-training: images and instructions, one part per trajectory.

It reads the published data sets and those of `vw2-record`. `trajectories="labeled"` gives the windows with an
instruction, `"recordings"` all play data in segments, without instruction. Only images are opened, never actions, since
pre-training uses no action labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..episodes import Episode, Part
from .calvin import CalvinDataset, CalvinSplit, TrajectoryKind
from .calvin_scenes import UNKNOWN
from .recorded_robot import CALVIN


class CalvinSource:
    """An `EpisodeSource` of trajectories; its default name is the robot's, with its scenes `calvin_D`, `calvin_ABC`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: CalvinSplit = "training",
        trajectories: TrajectoryKind = "labeled",
        camera: str = "static",
        name: str | None = None,
    ) -> None:
        """Read the labels, or the table of recordings, and check that every time step exists.

        Args:
            path: folder of the data set.
            split: `training` or `validation`.
            trajectories: `labeled` windows, or segments of whole `recordings`.
            camera: `static` or `gripper`.
            name: of the source.

        Raises:
            InputError: the folder, labels or time steps are missing.
        """
        self.dataset = CalvinDataset(os.fspath(path), split, trajectories=trajectories)
        self._camera = camera
        # An unknown scene has no letter; without any letter the name is `calvin`.
        scenes = sorted({trajectory.scene for trajectory in self.dataset.trajectories} - {UNKNOWN})
        robot = self.dataset.robot.name
        self.name = name or (f"{CALVIN}_{''.join(scenes)}".rstrip("_") if robot == CALVIN else robot)

    def parts(self) -> list[Part]:
        """Return one part per trajectory, of one episode."""
        return [Part(trajectory.trajectory_id, 1) for trajectory in self.dataset.trajectories]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the trajectory, its images uint8 [H, W, 3].

        Raises:
            InputError: a time step is damaged.
        """
        # A part has one episode, number 0.
        if start > 0:
            return
        trajectory = self.dataset.trajectories[part]
        yield Episode(
            source=self.name,
            episode_id=trajectory.trajectory_id,
            instruction=trajectory.instruction,
            hz=self.dataset.robot.hz,
            images=tuple(self.dataset.read_images(trajectory, camera=self._camera)),
        )
