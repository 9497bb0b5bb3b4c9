"""The configurations of the programs of the craft bench that train or imagine, in a module that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vw2_robot.devices import Hardware
from vw2_robot.limits import Count, Rate
from vw2_robot.schedule import LoopConfig, OptimConfig
from vw2_robot.storage.tracking import Track

from ..config import Plan

Method = Literal["vw2", "videoworld", "vdm"]
METHODS: tuple[Method, ...] = get_args(Method)


def judge_loop() -> LoopConfig:
    """Return the loop of a judge."""
    return LoopConfig(
        train_steps=3000,
        batch_size=64,
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_steps=100),
        log_every=100,
        save_every=1000,
    )


@dataclass(frozen=True)
class TrainJudgeConfig:
    """The root configuration of `vw2-train-judge`."""

    videos: list[str]
    """folders of videos with key steps, such as runs/craft_judge/training and runs/craft_judge/validation"""
    run_dir: str
    """folder of the run"""
    dinov2: str | None = None
    """folder of DINOv2's weights, saved by transformers; null: a small convolutional net, a stand-in"""
    px: Count = 96
    """height and width of the judge's images; a multiple of 14 with dinov2"""
    width: Count = 32
    """channels of the first layer of the convolutional net"""
    frames_per_state: Count = 4
    """frames sampled of each video before each key step, and after the last"""
    held_out: float = 0.25
    """share of the videos that the judge is tested on"""
    jitter: float = 0.3
    """largest change of color in training, as appearance is not to be judged"""
    shift_px: int = 6
    """largest offset of an image in training"""
    noise: float = 0.1
    """largest standard deviation of noise in training, in [-1, 1], as imagined images are not clean"""
    loop: LoopConfig = field(default_factory=judge_loop)
    seed: int = 0
    """of frames, split, weights and batches"""
    track: Track = "none"
    """where metrics go beside metrics.jsonl"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if not self.videos:
            raise ValueError("videos is empty; give folders of videos with key steps: videos=[DIR,...]")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}, expected a share between 0 and 1")
        if self.shift_px < 0 or min(self.jitter, self.noise) < 0:
            raise ValueError("jitter, shift_px and noise must not be negative")


@dataclass(frozen=True)
class ImagineCraftConfig:
    """The root configuration of `vw2-imagine-craft`."""

    policy: str
    """checkpoint or run folder of a policy that has a dLDM (a pretrain-on-openx run_dir too)"""
    videos: str
    """folder of test videos with key steps: the first frame and the instruction of each are given, nothing else"""
    out: str
    """folder; each method gets a folder in it"""
    dldm: str | None = None
    """folder of the dLDM stage, whose VDM renders; needed by vw2"""
    prior: str | None = None
    """folder of the VDM stage; needed by vdm"""
    methods: list[Method] = field(default_factory=lambda: list(METHODS))
    """whose videos are imagined: vw2, videoworld, vdm"""
    episodes: Count | None = None
    """test videos, the first ones; null: all"""
    plan: Plan = "requery"
    """full: the policy predicts all codes from the first image; requery: those of each segment from its first frame"""
    seconds: Rate | None = None
    """length of the imagined videos; null: that of each true video"""
    sample_steps: Count = 10
    """denoising steps of the VDM"""
    guidance: float = 1.0
    """weight of the codes against null codes, as in vw2-imagine"""
    seed: int = 0
    """of sampled codes and noise"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={self.methods}: name each method once, of {', '.join(METHODS)}")
        for method, name in (("vw2", "dldm"), ("vdm", "prior")):
            if method in self.methods and getattr(self, name) is None:
                raise ValueError(f"method {method} needs {name}=DIR; give it, or leave {method} out of methods")


@dataclass(frozen=True)
class CompareCodesConfig:
    """The root configuration of `vw2-compare-codes`."""

    dldms: dict[str, str]
    """name -> dLDM stage, such as {robot: DIR, hand: DIR, joint: DIR}"""
    videos: dict[str, str]
    """name -> folder of videos with key steps and a track of the tool, such as {hand: DIR, robot: DIR}"""
    out: str
    """folder of the comparison"""
    episodes: Count = 40
    """videos to use of each folder, the first ones"""
    validation_share: float = 0.2
    """share of the videos on which the penalty of a probe is chosen"""
    test_share: float = 0.3
    """share of the videos on which a probe is evaluated"""
    seed: int = 0
    """of splits, points and intervals"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if not self.dldms or len(self.videos) < 2:
            raise ValueError(
                "give at least one dLDM and two folders of videos: dldms={NAME: DIR}, videos={A: DIR, B: DIR}"
            )
        for name in (*self.dldms, *self.videos):
            if not name or Path(name).name != name:
                raise ValueError(f"{name!r} is no name for a data set or dLDM; use letters, digits and _")
        if self.episodes < 3:
            raise ValueError(f"episodes={self.episodes}; a probe needs at least 3 videos (training, validation, test)")
        shares = (self.validation_share, self.test_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(f"validation_share and test_share must be positive and sum to less than 1, found {shares}")
