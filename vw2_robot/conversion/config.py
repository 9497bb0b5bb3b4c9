"""The configuration of `vw2-convert`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vw2_robot.data.sources.calvin import TrajectoryKind
from vw2_robot.limits import Count, Rate

Target = Literal["lerobot", "rlds", "calvin"]
StoredImages = Literal["image", "video"]


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted, and into what."""

    in_: str
    """folder of the data set: CALVIN, RLDS, LeRobotDataset v3.0, or videos; recognized by its files"""
    out: str
    """the new folder; it appears when it is complete"""
    format: Target
    """of the new data set; for rlds, `out` is its version folder, such as data/mine/1.0.0"""
    splits: list[str] | None = None
    """which splits; null: all"""
    trajectories: TrajectoryKind = "labeled"
    """in=CALVIN: labeled windows (each becomes an episode), or whole recordings, without instruction"""
    image_key: str | None = None
    """the only camera to convert; null: all of them. For format=calvin it becomes the static camera"""
    hz: Rate | None = None
    """frames per second, if an RLDS set or videos state none or a wrong one"""
    actions: Literal["auto", "calvin", "metric", "drop"] = "auto"
    """meaning of the source's action: auto: as the data set states it (those of this package and CALVIN do; others stay
    as they are, their meaning "unknown"); calvin: relative, in units of 0.02 m and 0.05 rad; metric: relative, in
    meters and radians; drop: leave actions out
    """
    gripper: list[float] | None = None
    """actions=metric: the last number of a closed and of an open gripper; null: [-1, 1]"""
    storage: StoredImages = "image"
    """format=lerobot: image keeps every pixel; video (H.264) is far smaller and loses detail"""
    latents: str | None = None
    """run folder of `vw2-extract-latents` on the same data set: its codes become the column latent_tokens"""
    dldm: str | None = None
    """checkpoint or run folder of a dLDM: its codes are computed and become the column latent_tokens"""
    frames_per_file: Count = 2048
    """a file ends with the episode that reaches so many frames; a kill loses at most one file, memory holds one"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if self.gripper is not None and (
            self.actions != "metric"
            or len(self.gripper) != 2
            or not all(map(math.isfinite, self.gripper))
            or self.gripper[0] == self.gripper[1]
        ):
            raise ValueError(
                f"gripper={self.gripper} with actions={self.actions}, expected two different numbers (closed, open) "
                "with actions=metric"
            )
        if self.storage == "video" and self.format != "lerobot":
            raise ValueError(f"storage=video is an option of format=lerobot, found format={self.format}")
        if self.latents is not None and self.dldm is not None:
            raise ValueError("latents reads codes and dldm computes them: give one of the two")
        if self.splits is not None and not self.splits:
            raise ValueError("splits=[] names no split; leave it out for all of them")
