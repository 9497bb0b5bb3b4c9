"""The configuration of `vw2-judge`, in a module that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vw2_robot.devices import Hardware
from vw2_robot.limits import Count


@dataclass(frozen=True)
class JudgeVideosConfig:
    """The root configuration of `vw2-judge`."""

    judge: str
    """run folder of vw2-train-judge"""
    videos: str
    """folder of the true test videos"""
    imagined: list[str]
    """folders of vw2-imagine-craft, one for each training seed"""
    out: str
    """folder of the table"""
    tower: str = "tower"
    """the task whose last key step is the column "tower"; of Video-CraftBench a task of blocks"""
    persistence: Count = 2
    """frames in a row in which a key step must be seen"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if not self.imagined:
            raise ValueError("imagined is empty; give the folders of vw2-imagine-craft: imagined=[DIR,...]")
