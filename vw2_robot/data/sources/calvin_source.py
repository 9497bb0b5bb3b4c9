"""A CALVIN data set as a source for pre-training: images and words, one part per trajectory.

Works on the published data sets and on what `vw2-record` writes. `trajectories="labeled"` gives the windows that
carry an instruction, `"recordings"` the whole play in pieces, without words. Images alone are opened, actions never:
this is the side of the method that needs no labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..episodes import Episode, Part
from .calvin import CALVIN_HZ, CalvinDataset, CalvinSplit, TrajectoryKind
from .calvin_scenes import UNKNOWN


class CalvinSource:
    """An `EpisodeSource`; by default called after its scenes: `calvin_D`, `calvin_ABC`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: CalvinSplit = "training",
        trajectories: TrajectoryKind = "labeled",
        camera: str = "static",
        name: str | None = None,
    ) -> None:
        """Read the labels, or the table of recordings, and look that every time step is there.

        Raises:
            InputError: the folder, labels or time steps are missing.
        """
        self.dataset = CalvinDataset(os.fspath(path), split, trajectories=trajectories)
        self._camera = camera
        scenes = sorted({trajectory.scene for trajectory in self.dataset.trajectories} - {UNKNOWN})
        self.name = name or "_".join(["calvin", "".join(scenes)]).rstrip("_")

    def parts(self) -> list[Part]:
        """One part per trajectory, of one episode."""
        return [Part(trajectory.trajectory_id, 1) for trajectory in self.dataset.trajectories]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the trajectory, its images uint8 [H, W, 3].

        Raises:
            InputError: a time step is damaged.
        """
        if start > 0:
            return
        trajectory = self.dataset.trajectories[part]
        yield Episode(
            source=self.name,
            episode_id=trajectory.trajectory_id,
            instruction=trajectory.instruction,
            hz=CALVIN_HZ,
            images=tuple(self.dataset.read_images(trajectory, camera=self._camera)),
        )
