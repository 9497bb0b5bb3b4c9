"""The configurations of `vw2-probe-latents` and `vw2-gate-latents`, in a module that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vw2_robot.data.clips import frame_offsets
from vw2_robot.devices import Hardware
from vw2_robot.limits import Count, Rate


@dataclass(frozen=True)
class ProbeLatentsConfig:
    """The root configuration of `vw2-probe-latents`."""

    dldm: str
    """a checkpoint, or the run folder of the stage"""
    labeled: list[str]
    """labeled data sets, RLDS or with one file per time step (docs/data.md): one for each scene, or another robot's"""
    out: str
    """folder of the report"""
    names: list[str] | None = None
    """names of the data sets in the report; default: those of their folders"""
    split: Literal["training", "validation"] = "training"
    """the split of each data set"""
    episodes: int = 200
    """demonstrations to use of each data set, sampled by the seed"""
    frame_cache: str | None = None
    """folder of the decoded frames; default: out/frames"""
    target_hz: Rate | None = None
    """Hz of the clips' frames; if gap_seconds is null too: what the dLDM was trained at"""
    gap_seconds: Rate | None = None
    """instead of target_hz: seconds that a latent step lasts"""
    before: str | None = None
    """a second checkpoint, such as that of phase 1: the report states what has changed since, on the same clips"""
    explained_clips: int = 64
    """test clips of each data set on which the video model is judged, where the checkpoint has one"""
    pairs: int = 400
    """pairs of clips in the swap test"""
    nuisance_clips: int = 200
    """clips in the camera-cut test"""
    validation_share: float = 0.2
    """share of the demonstrations on which the penalty of a probe is chosen"""
    test_share: float = 0.3
    """share of the demonstrations on which a probe is evaluated"""
    seed: int = 0
    """of demonstrations, splits, pairs and intervals"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if not self.labeled:
            raise ValueError("labeled is empty; give the folders of labeled data sets: labeled=[DIR,...]")
        if self.names is not None and (len(self.names) != len(self.labeled) or len(set(self.names)) < len(self.names)):
            raise ValueError(f"names={self.names}: expected {len(self.labeled)} different names, one for each data set")
        # Raises where target_hz and gap_seconds exclude one another.
        frame_offsets(1, hz=1.0, target_hz=self.target_hz, gap_seconds=self.gap_seconds)
        if self.episodes < 3:
            raise ValueError(f"episodes={self.episodes}; a probe needs at least 3 (training, validation, test)")
        for name in ("explained_clips", "pairs", "nuisance_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
        shares = (self.validation_share, self.test_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(f"validation_share and test_share must be positive and sum to less than 1, found {shares}")


@dataclass(frozen=True)
class GateThresholds:
    """The least values that pass, on every seed and data set; R2 is that of a linear probe on one-hot codes."""

    explained_seen: float = 0.5
    """explained change at the highest noise level, in data sets that the dLDM was trained on"""
    explained_unseen: float = 0.4
    """the same in the data sets `unseen`"""
    decoder_share: float = 0.7
    """explained change over that of the dLDM's decoder"""
    shuffle_ratio: float = 2.0
    """loss of the video model with the codes of another clip over that with the right ones, without control video"""
    translation: float = 0.5
    """mean R2 of the three translations"""
    roll: float = 0.3
    """R2"""
    pitch: float = 0.1
    """R2"""
    yaw: float = 0.1
    """R2"""
    gripper: float = 0.1
    """R2 of the gripper's opening"""
    above_pixels: float = 0.001
    """mean R2 of the seven columns, each at least 0, less that of pixel differences quantized as the codes are"""


@dataclass(frozen=True)
class GateLatentsConfig:
    """The root configuration of `vw2-gate-latents`."""

    reports: list[str]
    """latent reports (folders or files) of dLDMs that differ in the training seed"""
    unseen: list[str] = field(default_factory=list)
    """names of data sets in the reports that the dLDM was not trained on"""
    min_seeds: Count = 3
    """least number of reports"""
    thresholds: GateThresholds = field(default_factory=GateThresholds)

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if len(self.reports) < self.min_seeds:
            raise ValueError(f"reports has {len(self.reports)} seeds, expected at least {self.min_seeds} (min_seeds)")
