"""The configuration of `vw2-finetune`, and the checks that need no file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vw2_robot.data.statistics import NormalizationMode
from vw2_robot.devices import Hardware
from vw2_robot.limits import Count, ExistingPath
from vw2_robot.models.policy.config import DECODING, Acting, ActionHeadConfig, LoRAConfig, PolicyConfig
from vw2_robot.schedule import LoopConfig
from vw2_robot.storage.tracking import Track

SCRATCH = "scratch"
MOST_KEPT = 20
"""checkpoints that a run may keep beside its last one"""
CodeSource = Literal["ground_truth", "predicted", "hindsight"]


@dataclass(frozen=True)
class LabeledDataConfig:
    """The labeled data set, and what of it is held out."""

    path: str
    """folder of a data set in CALVIN's layout, published or written by vw2-record or vw2-convert, of any robot"""
    split: Literal["training", "validation"] = "training"
    """the split of the data set that is trained on"""
    validation_fraction: float = 0.1
    """share of the trajectories, whole ones, that never train"""
    validation_split: Literal["training", "validation"] | None = None
    """hold out this split of the data set instead of a share of `split`"""
    frame_cache: str | None = None
    """folder of the decoded images and the codes of the windows, which runs may share; null: in the run folder"""

    def __post_init__(self) -> None:
        if self.validation_split is None and not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction}, expected a number above 0 and below 1: "
                "validation needs a share of the trajectories"
            )
        if self.validation_split == self.split:
            raise ValueError(f"data.split and data.validation_split are both {self.split!r}; nothing would be held out")


@dataclass(frozen=True)
class NetworkConfig:
    """The untrained policy that `policy=scratch` begins with."""

    like: str | None = None
    """checkpoint or run folder whose network sizes are taken, without its weights; the rest is then ignored"""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    stride: Count = 4
    """s, actions per latent step"""


@dataclass(frozen=True)
class FinetuneLoopConfig(LoopConfig):
    """The training loop of fine-tuning, whose checkpoints may be compared afterwards."""

    keep_every: int = 0
    """steps between two checkpoints that are kept for `vw2-select`, without optimizer; 0: the last one alone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_every < 0 or (self.keep_every and self.train_steps > MOST_KEPT * self.keep_every):
            raise ValueError(
                f"loop.keep_every={self.keep_every}, expected 0, or at least {-(-self.train_steps // MOST_KEPT)} for "
                f"train_steps={self.train_steps}: a run keeps at most {MOST_KEPT} checkpoints"
            )


@dataclass(frozen=True)
class HindsightConfig:
    """code_source=hindsight: share of the slots that get a sampled code, linear from the first to the last step."""

    start: float = 0.25
    """share at the first step"""
    end: float = 0.25
    """share at the last step"""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"hindsight.{name} must lie in [0, 1], found {getattr(self, name)}")


@dataclass(frozen=True)
class UnlabeledConfig:
    """Video without actions, on which the code loss of pre-training continues while the head trains."""

    weight: float = 0.0
    """of the code loss on unlabeled windows; 0 switches it off"""
    path: ExistingPath | None = None
    """another data set of this kind; null: the trajectories that the label fraction leaves out; actions stay unread"""
    batch_size: int = 32
    """unlabeled windows of a step"""

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.batch_size < 1:
            raise ValueError(
                f"unlabeled.weight must not be negative and unlabeled.batch_size positive, found {self.weight} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class FinetuneAids:
    """What is not the paper's in fine-tuning. Defaults: none."""

    pose_weight: float = 0.0
    """weight of the error of the predicted end-effector pose, in training only; reads robot_obs of labeled windows"""
    standardize: Literal["labeled"] | None = None
    """labeled: what pre-training's aids.standardize=batch measured on its video is measured again on the video of the
    labeled trajectories, for codes of another domain; null: as in pre-training"""

    def __post_init__(self) -> None:
        if not self.pose_weight >= 0:
            raise ValueError(f"aids.pose_weight must not be negative, found {self.pose_weight}")

    @property
    def names(self) -> list[str]:
        """The aids that are on, with their value."""
        pose = [f"pose_weight={self.pose_weight}"] if self.pose_weight else []
        return pose + ([f"standardize={self.standardize}"] if self.standardize else [])


@dataclass(frozen=True)
class FinetuneConfig:
    """The root configuration of `vw2-finetune`."""

    run_dir: str
    """folder of checkpoints, logs and results"""
    policy: str
    """checkpoint or run folder of the pre-trained policy (a pretrain-on-openx run_dir too), builtin:NAME, or scratch"""
    data: LabeledDataConfig
    loop: FinetuneLoopConfig
    method: str | None = None
    """name of the method that is compared, for tables; configs/method sets it"""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    label_fraction: float = 1.0
    """share of the trajectories that are not held out whose actions are read"""
    label_seed: int = 0
    """which trajectories are held out and which are labeled"""
    preset: Literal["full", "head", "lora", "last_n"] = "full"
    """what trains beside the head: full: the whole policy; head: nothing (a probe); lora: adapters on the language
    model; last_n: its last layers"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    last_n: int = 2
    """layers that preset=last_n trains"""
    head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    head_lr_mult: float = 10.0
    """learning rate of the head over that of the policy"""
    latent_steps: int = 1
    """H, latent steps per window: the policy predicts chunks of H * s actions"""
    n_action_steps: int | None = None
    """actions that are executed per policy call, stored for rollouts; null: all of them"""
    temporal_ensemble: float | None = None
    """decay of the weights with which overlapping chunks are averaged in control, stored for rollouts; null: off"""
    acting: Acting = "parallel"
    """what the policy reads in the slots of its codes, in validation and control: parallel, null tokens, and all codes
    are predicted at once; expected, the mean embedding under the distribution of each code; sampled or argmax, a code
    from it; none: as parallel, and no code is decoded"""
    code_source: CodeSource = "hindsight"
    """codes that the policy reads in training: the dLDM's; predicted, what it reads in control; hindsight, the dLDM's
    with a share of the slots replaced by samples of the policy. Not read with acting=parallel or none"""
    hindsight: HindsightConfig = field(default_factory=HindsightConfig)
    lambda_ce: float = 0.1
    """weight of the code loss; 0 in the paper"""
    unlabeled: UnlabeledConfig = field(default_factory=UnlabeledConfig)
    aids: FinetuneAids = field(default_factory=FinetuneAids)
    """what is not the paper's; the one place where it is set"""
    gripper_loss: Literal["l2", "bce"] = "l2"
    """l2: squared error against -1 and +1; bce: binary cross-entropy of a logit"""
    gripper_weight: float = 1.0
    """of the gripper in the action loss"""
    normalization: NormalizationMode = "q01_q99"
    """how actions are normalized: by their 1 % and 99 % quantiles, by mean and deviation, or not"""
    image_shift_px: int = 3
    """largest random translation of the input image, edge-padded"""
    image_color_jitter: float = 0.0
    """largest random change of contrast of the input image, and at half of brightness and color channels; 0: none"""
    validation_windows: int = 256
    """held-out windows that are validated on every `loop.log_every` steps; the end of training takes all"""
    seed: int = 0
    """of untrained weights, batches, image shifts, color jitter and sampling"""
    hardware: Hardware = field(default_factory=Hardware)
    track: Track = "tensorboard"
    """where metrics go beside metrics.jsonl: tensorboard (extra `track`), wandb (extra `wandb`), or none"""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"label_fraction must lie in (0, 1], found {self.label_fraction}")
        for name in ("latent_steps", "n_action_steps", "last_n", "validation_windows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be positive, found {value}")
        for name in ("lambda_ce", "gripper_weight", "image_shift_px", "image_color_jitter", "temporal_ensemble"):
            # `not >=` instead of `<`, so that NaN is refused as well.
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, found {value}")
        if self.head.bins is not None and (self.gripper_loss, self.gripper_weight) != ("l2", 1.0):
            raise ValueError(
                f"head.bins={self.head.bins} has no loss of its own for the gripper: leave out gripper_loss and "
                "gripper_weight"
            )
        if not self.head_lr_mult > 0:
            raise ValueError(f"head_lr_mult must be positive, found {self.head_lr_mult}")
        self._check_codes()

    def _check_codes(self) -> None:
        code_losses = {"lambda_ce": self.lambda_ce, "unlabeled.weight": self.unlabeled.weight}
        active = [name for name, weight in code_losses.items() if weight > 0]
        if not self.from_scratch:
            return
        if self.preset != "full":
            raise ValueError(f"policy=scratch has nothing to keep frozen: set preset=full, found {self.preset}")
        if self.aids.standardize is not None:
            raise ValueError(f"aids.standardize={self.aids.standardize}: policy=scratch has no dLDM to measure")
        if active or (self.reads_codes and self.code_source != "predicted"):
            raise ValueError(
                f"policy=scratch has no dLDM to take codes from: set acting=none (or code_source=predicted), "
                f"lambda_ce=0 and unlabeled.weight=0, found acting={self.acting}, code_source={self.code_source} and "
                f"{active or 'no code loss'}"
            )

    @property
    def from_scratch(self) -> bool:
        """Whether the policy begins untrained."""
        return self.policy == SCRATCH

    @property
    def reads_codes(self) -> bool:
        """Whether the policy reads codes, or embeddings in their place; else null tokens."""
        return self.acting in DECODING

    @property
    def needs_codes(self) -> bool:
        """Whether anything is learned or measured with the codes of labeled windows."""
        return self.acting != "none" or self.lambda_ce > 0

    def hindsight_share(self, step: int) -> float:
        """Return the share of slots that get a sampled code at this step, with code_source=hindsight."""
        progress = step / max(1, self.loop.train_steps - 1)
        return self.hindsight.start + progress * (self.hindsight.end - self.hindsight.start)
