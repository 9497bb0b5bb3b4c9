"""The configuration that all pre-training programs share, and how a stage finds the one before it.

One tree for the whole chain, so that `pretrain-on-openx` and the single stages accept the same overrides. Each stage
records only the sections that decide its result (`stage_tree`), so a longer policy schedule does not invalidate a
trained dLDM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.clips import Augmentation, TimeBase, frame_offsets
from vw2_robot.data.frame_storage import Storage
from vw2_robot.data.images import Aspect, Decode
from vw2_robot.data.replay.open_replay import ReplayConfig
from vw2_robot.devices import Hardware
from vw2_robot.limits import Count, ExistingPath, Rate, Share, Unbounded
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.policy.config import PolicyConfig, Sampling
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.schedule import LoopConfig
from vw2_robot.storage.tracking import Track

from .aids import KEYS, Aids

Stage = Literal["vdm", "dldm", "latents", "policy"]
Anchor = Literal["coarse", "rendered"]
Plan = Literal["full", "requery"]
PREDICTED, ENCODED = "predicted", "encoded"


@dataclass(frozen=True)
class DataConfig:
    """Where the video comes from and how it is cut into clips."""

    path: str | list[str] | None = None
    """a data set of any format that `data.sources.formats` knows, or a list of them with different names; with
    `mixture`: the folder or bucket of the sets"""
    mixture: str | None = None
    """octo, openvla, videoworld2, or a yaml file with `name: weight`: many Open-X sets below `path`; or the published
    table openx_videocraft_meta.json: pickles and clips below `path` (docs/import.md)"""
    source: str | None = None
    """name of its row in the Open-X table; default: the data set's own name"""
    splits: tuple[str, ...] | None = None
    """names of splits, read from every data set (for RLDS also slices; for a folder of videos, folders in it); null:
    the training split, and all of a folder of videos"""
    image_key: str | None = None
    """camera to use instead of the one in the Open-X table"""
    hz: Rate | None = None
    """frames per second of an RLDS set, pickles or videos in which it is missing or wrong"""
    stream: bool = False
    """train the video prior and the dLDM on clips that are read from the data sets during training instead of from the
    frame cache; then only validation, latent cache and policy need the cache, and `cache_episodes` bounds it"""
    cache_episodes: int | None = None
    """episodes of each data set (and split) that go into the frame cache, the first ones of each file; null: all"""
    shuffle_mb: int = 256
    """with `stream`: MiB of compressed images held for shuffling, over all ranks"""
    stream_shards: int | None = None
    """with `stream`: parts into which the data are divided for good, so that a run can continue with other ranks; a
    multiple of ranks x micro-batches, and no more than there are files; null: 8, or half the files if that is less"""
    decode_threads: int = 2
    """with `stream`, a replay or compressed frames: threads that decode images; 0 decodes in the training loop"""
    prefetch_batches: int = 1
    """batches of clips that a thread reads ahead of training, unless `decode_threads` is 0 or clips come from a
    replay; each costs the memory of one; 0: none"""
    frame_cache: str | None = None
    """a finished frame cache to read instead of `path`: no TensorFlow is needed then"""
    frame_storage: Storage = "decoded"
    """how the frame cache holds images. decoded: read at memory speed; compressed: as JPEG or PNG of the data set, a
    tenth of the disk or less, decoded whenever they are read. Same pixels"""
    aspect: Aspect = "stretch"
    """how images get the dLDM's size: stretched, or padded to keep their proportions"""
    decode: Decode = "scaled"
    """JPEG at least twice as large as the dLDM's images. scaled: decoded at 1/8 to 4/8 of their size, then
    resized, three times as fast; full: decoded as a whole, then resized, as the policy's images are at control time"""
    max_skipped: int = 10
    """undecodable episodes that are named and skipped before the run stops"""
    target_hz: Rate | None = None
    """Hz that clips are resampled to; null takes consecutive frames, as released"""
    gap_seconds: Rate | None = None
    """instead of target_hz: seconds that a latent step lasts, whatever the source's rate"""
    validation_fraction: Share = 0.1
    """share of the episodes that are held out"""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("cache_episodes", "shuffle_mb", "stream_shards"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, found {value}")
        chosen = {"source": self.source, "image_key": self.image_key, "hz": self.hz}
        unused = [f"data.{name}" for name, value in chosen.items() if value is not None]
        if self.mixture is not None and unused:
            raise ValueError(
                f"{' and '.join(unused)}: data.mixture={self.mixture} takes that from the table of sources"
            )
        if isinstance(self.path, list) and (not self.path or self.mixture is not None or self.source is not None):
            raise ValueError(
                f"data.path is a list of {len(self.path)}; give at least one data set, and neither data.mixture nor "
                "data.source with a list, since those apply to one folder"
            )
        frame_offsets(1, hz=1.0, **self.time_base)  # raises where target_hz and gap_seconds exclude one another
        for name in ("decode_threads", "prefetch_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, found {getattr(self, name)}")
        if self.stream and self.path is None:
            raise ValueError("data.stream=true needs data.path, since a frame cache is no data set to stream from")

    @property
    def time_base(self) -> TimeBase:
        """The two fields that time clips."""
        return TimeBase(target_hz=self.target_hz, gap_seconds=self.gap_seconds)


@dataclass(frozen=True)
class ReaderConfig:
    """The stage between the phases: the video model learns to read the codes of a frozen encoder."""

    loop: LoopConfig
    """its steps are the most that it may take"""
    patience: int = 4
    """it ends after so many validations in a row without a rise of the explained change"""
    min_rise: float = 0.01
    """a rise is at least this much above the best so far"""

    def __post_init__(self) -> None:
        if self.patience < 1 or not self.min_rise >= 0:
            raise ValueError(
                "train_dldm.reader.patience must be at least 1 and min_rise not negative, found "
                f"{self.patience} and {self.min_rise}"
            )


@dataclass(frozen=True)
class TrainDLDMConfig:
    """The two phases of training the dLDM (method 1.9, 1.10)."""

    phase1: LoopConfig
    phase2: LoopConfig
    with_reader: bool = False
    """aids.reader: between the phases, `reader` trains"""
    reader: ReaderConfig | None = None
    """encoder frozen, the VDM learns without control video to read its codes; for a weak prior, which would otherwise
    meet its first code in phase 2"""
    advance: Literal["steps", "ratio"] = "steps"
    """when phase 2 begins. steps: after phase 1's steps, with a line in the log if `advance_ratio` is not reached;
    ratio: at the first validation at or below it, and never before; phase 1's steps are then the most it may take"""
    advance_ratio: Unbounded = 0.5
    """held-out error over that of copying frame 0, at which codes and control carry enough motion for phase 2"""
    with_vdm: bool = True
    """off: phase 2 continues with phase 1's loss; no VDM is built, trained or saved (Table 3a, row 1; VideoWorld)"""
    stop_gradient: bool = True
    """phase 2: L_rec trains the decoder alone; off: it still shapes the codes (Table 3a, second row)"""
    vdm_lr_mult: Rate = 1.0
    """phase 2: learning rate of VDM, projection and control over that of the autoencoder; small runs erode their codes
    when the encoder learns as fast as a VDM that does not use them yet"""
    denoise_weight: float = 1.0
    """of L_den in phase 2"""
    reconstruction_weight: float = 1.0
    """of L_rec in phase 2"""
    anchor_grad: bool = False
    """phase 2: let L_rec reach the trunk through f_0 (release parity)"""
    anchor_grad_phase1: bool = True
    """the same in phase 1; LAPA's decoder sees the first frame without gradient"""
    reconstruction_loss: Literal["l2", "l1"] = "l2"
    """l2: the paper; l1: the release"""
    perceptual_weight: float = 0.0
    """of the perceptual distance that is added to the reconstruction error (release: 0.1)"""
    perceptual_weights: ExistingPath | None = None
    """VGG16 under torchvision's names: a safetensors or .pth file, or a folder with one"""
    control_dropout: float = 0.0
    """aids.control_dropout: phase 2: probability, per sample, that the control video is a still one
    (aids.still_control); without it small runs lose their codes (method 5.1)"""
    control_grayscale: bool = False
    """the control video is gray, so that the VDM takes colors from the conditioning frame (release)"""
    target_color_jitter: float = 0.0
    """strength of brightness, contrast and channel gains on the VDM's target clip (release: 0.3)"""
    statistics_group: int | None = None
    """clips that are standardized together before FSQ, and correlated for `decorrelation`; null: the whole batch, which
    then is one micro-batch. With n clips the statistics of a group vary by about 1/sqrt(n x latent steps) more"""
    decorrelation: float = 0.0
    """aids.decorrelation: weight of the mean squared correlation between the FSQ dimensions of a latent step"""
    encoder_augmentation: float = 0.0
    """aids.encoder_augmentation: strength of a drift of view and light that only the encoder sees, so that codes leave
    it out; 0: none"""
    ema: float = 0.0
    """decay of averaged weights (such as 0.999), which are then validated and used by later stages; 0: none"""
    validation_clips: int = 64
    """held-out clips that are validated on"""
    usage_clips: int = 1024
    """clips over which codes.json counts codes at the end"""
    perplexity_alarm: Unbounded = 0.01
    """perplexity of the codes since the last validation over the most it could be, below which there is an alarm"""
    shuffle_alarm: Unbounded = 1.02
    """phase 2: denoising loss with another clip's codes over that with the right ones, below which the VDM is taken to
    ignore codes"""
    explained_alarm: Unbounded = 0.15
    """explained change with the right codes less that with null codes, at the highest noise level, below which the VDM
    is taken not to read them; small models reach 0.3 and more"""
    alarm_after: int = 3
    """validations in a row that must miss a limit for an alarm"""

    @property
    def total(self) -> int:
        """Training steps of both phases, and of the reader between them."""
        return self.phase1.train_steps + self.reader_steps + self.phase2.train_steps

    @property
    def reader_steps(self) -> int:
        """Training steps of the reader; 0 without one, or without a VDM."""
        return self.reader.loop.train_steps if self.reader and self.with_reader and self.with_vdm else 0

    def __post_init__(self) -> None:
        if self.with_reader and self.reader is None:
            raise ValueError("aids.reader=true needs train_dldm.reader.loop, the reader's steps and learning rate")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train_dldm.ema must lie in [0, 1), found {self.ema}")
        if self.statistics_group is not None:
            for loop in (self.phase1, self.phase2):
                if self.statistics_group < 2 or loop.batch_size % self.statistics_group:
                    raise ValueError(
                        "train_dldm.statistics_group must be at least 2 and divide the batch sizes of both phases, "
                        f"found {self.statistics_group} and batches of {loop.batch_size}"
                    )
        for name in ("usage_clips", "alarm_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"train_dldm.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.control_dropout <= 1:
            raise ValueError(f"aids.control_dropout must lie in [0, 1], found {self.control_dropout}")
        for name in (
            "denoise_weight",
            "reconstruction_weight",
            "target_color_jitter",
            "perceptual_weight",
            "decorrelation",
            "encoder_augmentation",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train_dldm.{name} must not be negative, found {getattr(self, name)}")
        if self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise ValueError(
                f"train_dldm.perceptual_weight={self.perceptual_weight} needs train_dldm.perceptual_weights, a file of "
                "VGG16's weights"
            )
        if self.validation_clips < 2:
            raise ValueError(
                "train_dldm.validation_clips must be at least 2, since the shuffle ratio swaps the codes of two clips; "
                f"found {self.validation_clips}"
            )


@dataclass(frozen=True)
class ExtractLatentsConfig:
    """The latent cache (method 2.5)."""

    cache_stride: int = 4
    """frames between the starts of windows"""
    batch_size: int = 64
    """windows that are encoded at once"""

    def __post_init__(self) -> None:
        if self.cache_stride < 1 or self.batch_size < 1:
            raise ValueError(
                f"extract_latents.cache_stride and batch_size must be positive, found {self.cache_stride} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class TrainPolicyConfig:
    """Latent pre-training of the policy."""

    loop: LoopConfig
    image_shift_px: int = 3
    """largest random translation of the input image, edge-padded"""
    image_color_jitter: float = 0.0
    """largest random change of contrast of the input image, and at half of brightness and color channels; 0: none"""
    code_dropout: float = 0.0
    """aids.policy_code_dropout: share of samples that read null tokens in place of codes, as acting=parallel and none
    do"""
    latent_steps: int | None = None
    """latent steps that are predicted from an image; null: those of one clip of the dLDM; more: the codes of
    consecutive clips, joined"""
    condition_every: Count | None = None
    """with more latent steps than those of one clip: the plan goes on, but after every so many of them it is predicted
    from the newest frame and the codes so far; whole clips. null: from the first frame alone"""
    codes: Literal["shuffled"] | None = None
    """shuffled: each window gets the codes of another one, chosen at random, here and in fine-tuning: a control, whose
    codes say nothing about their window; null: each has its codes"""

    def __post_init__(self) -> None:
        for name in ("image_shift_px", "image_color_jitter"):
            # `not >=` instead of `<`, so that NaN is refused as well.
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"train_policy.{name} must not be negative, found {value}")
        if not 0 <= self.code_dropout <= 1:
            raise ValueError(f"aids.policy_code_dropout must lie in [0, 1], found {self.code_dropout}")
        if self.latent_steps is not None and self.latent_steps < 1:
            raise ValueError(f"train_policy.latent_steps must be positive, found {self.latent_steps}")


def rendered_size(dldm: DLDMConfig, vdm: VDMConfig) -> tuple[int, int]:
    """Return height and width of the frames that the VDM renders, in pixels."""
    return vdm.frame_height or dldm.height, vdm.frame_width or dldm.width


def make_geometry(dldm: DLDMConfig, vdm: VDMConfig, codec: CodecConfig) -> Geometry:
    """Return the sizes of latents and codes.

    Args:
        dldm: gives codes and latent steps.
        vdm: its size in pixels, if it has one of its own.
        codec: turns a square of `block` pixels into a latent.
    """
    height, width = rendered_size(dldm, vdm)
    return Geometry(
        channels=codec.channels,
        latent_steps=dldm.latent_steps,
        height=height // codec.block,
        width=width // codec.block,
        queries=dldm.queries,
        fsq_dims=dldm.code_dims,
    )


@dataclass(frozen=True)
class PretrainConfig:
    """The root configuration of `pretrain-on-openx` and of its stages."""

    run_dir: str
    """folder of all stages, one folder each"""
    data: DataConfig
    dldm: DLDMConfig
    vdm: VDMConfig
    codec: CodecConfig
    policy: PolicyConfig
    train_vdm: LoopConfig
    train_dldm: TrainDLDMConfig
    extract_latents: ExtractLatentsConfig
    train_policy: TrainPolicyConfig
    aids: Aids = field(default_factory=Aids)
    """what is not the paper's; the one place where each of them is set"""
    stages: tuple[Stage, ...] = ("vdm", "dldm", "latents", "policy")
    """what pretrain-on-openx runs, in this order"""
    seed: int = 0
    """of untrained weights, clips, noise and the held-out episodes"""
    replay: ReplayConfig | None = None
    """train the video prior and the dLDM on clips sampled from a replay (docs/scaling.md), not from the frame cache"""
    workers: int = 1
    """processes of each rank that write the latent cache; its content does not depend on it"""
    hardware: Hardware = field(default_factory=Hardware)
    track: Track = "tensorboard"
    """where metrics go beside metrics.jsonl: tensorboard (extra `track`), wandb (extra `wandb`), or none"""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        for aid, key in KEYS.items():
            if (value := attrgetter(key)(self)) != getattr(self.aids, aid):
                shown = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(f"{key}={shown}: set aids.{aid}={shown}")
        memory = self.replay is not None and self.replay.engine == "memory"
        if self.replay is not None and (self.data.stream or (memory and self.data.path is None)):
            raise ValueError(
                f"replay={self.replay.engine} with data.stream={self.data.stream} and data.path={self.data.path}: "
                "clips come from a replay or from a stream, and a replay in memory is filled from data.path"
            )
        every, whole = self.train_policy.condition_every, self.train_policy.latent_steps or self.dldm.latent_steps
        if every is not None and (every % self.dldm.latent_steps or whole % every or whole == every):
            raise ValueError(
                f"train_policy.condition_every={every} must be a number of whole clips of {self.dldm.latent_steps} "
                f"latent steps, and a plan a number of such runs: found train_policy.latent_steps={whole}"
            )
        if self.codec.stride != self.dldm.temporal_stride:
            raise ValueError(
                f"codec.stride is {self.codec.stride}, the dLDM's temporal stride {self.dldm.temporal_stride}; they "
                "must be equal, so that latent frame t of the VDM is latent step t"
            )
        if self.policy.queries != self.dldm.queries or self.policy.fsq_levels != self.dldm.fsq_levels:
            raise ValueError(
                f"the policy predicts {self.policy.queries} codes of levels {self.policy.fsq_levels} per latent step, "
                f"the dLDM encodes {self.dldm.queries} of {self.dldm.fsq_levels}; make policy and dldm equal"
            )
        dropout = self.train_dldm.control_dropout
        if dropout > 0 and self.train_dldm.with_vdm and self.vdm.control != "none" and not self.vdm.still_control:
            raise ValueError(f"aids.control_dropout={dropout} gives still control videos: set aids.still_control=true")
        # Here and not in the configurations of VDM and codec: those of a checkpoint have their weights beside them.
        if self.train_dldm.with_vdm and self.vdm.init == "weights" and self.vdm.weights is None:
            raise ValueError(
                "vdm.init=weights needs vdm.weights, a folder in diffusers' layout; vdm.init=prior trains a prior "
                "first, vdm.init=random begins with random weights"
            )
        is_random = self.codec.kind == "wan" and self.codec.weights is None
        if self.train_dldm.with_vdm and is_random and self.codec.init != "random":
            raise ValueError(
                "codec.kind=wan needs codec.weights, a folder in diffusers' layout; codec.init=random takes random "
                "weights, whose latents are of no use"
            )
        height, width = rendered_size(self.dldm, self.vdm)
        if (
            height < self.dldm.height
            or width < self.dldm.width
            or height % self.codec.block
            or width % self.codec.block
        ):
            raise ValueError(
                f"the VDM's frames, {height} x {width} pixels, must be multiples of codec.block={self.codec.block} and "
                f"no smaller than the dLDM's, {self.dldm.height} x {self.dldm.width}"
            )
        if self.vdm.warp and self.codec.kind != "dct":
            raise ValueError(f"aids.warp_output=true moves pixels of the DCT codec, found codec.kind={self.codec.kind}")
        if self.dldm.gap > 1 and self.train_dldm.with_vdm:
            raise ValueError(
                f"dldm.gap={self.dldm.gap} leaves out frames that the VDM renders; set train_dldm.with_vdm=false"
            )

    @property
    def needs_prior(self) -> bool:
        """Whether phase 2 begins with the video prior of the stage `vdm`."""
        return self.train_dldm.with_vdm and self.vdm.init == "prior" and self.vdm.weights is None

    @property
    def geometry(self) -> Geometry:
        """The sizes of latents and codes, which the VDM takes from codec and dLDM."""
        return make_geometry(self.dldm, self.vdm, self.codec)

    @property
    def clip_size(self) -> tuple[int, int]:
        """Height and width of the clips that are read: the VDM's where there is one."""
        return rendered_size(self.dldm, self.vdm) if self.train_dldm.with_vdm else (self.dldm.height, self.dldm.width)

    def stage_dir(self, stage: Stage | Literal["frames"]) -> Path:
        """Return run_dir/<stage>."""
        return Path(self.run_dir) / stage

    def stage_tree(self, *sections: str) -> dict[str, Any]:
        """Return the named sections as plain values, which a stage records and compares when it is resumed."""
        tree = config_tree(self)
        # As it was written when ("train",) was the default, so that older runs can be resumed.
        tree["data"]["splits"] = list(self.data.splits or ("train",))
        # The first two change no pixel. A position in a stream is compared with the third, also one of a release whose
        # streams had a single shard.
        for name in ("frame_storage", "prefetch_batches", "stream_shards"):
            del tree["data"][name]
        return {name: tree[name] for name in sections}


@dataclass(frozen=True)
class ImagineConfig:
    """The root configuration of `vw2-imagine`."""

    out: str
    """the mp4; a json of the same name lies beside it"""
    policy: str | None = None
    """checkpoint or run folder of a policy that has a dLDM (a pretrain-on-openx run_dir too), or builtin:NAME"""
    dldm: ExistingPath | None = None
    """folder of a dLDM stage that decodes codes of a file, instead of a policy"""
    image: ExistingPath | None = None
    """file of the first image"""
    prompt: str | None = None
    """the instruction; default: that of the episode, where the image comes from a frame cache"""
    frame_cache: str | None = None
    """a frame cache to take the first image and its true continuation from, instead of `image`"""
    episode: int = 0
    """its number in the frame cache"""
    start: int = 0
    """frame of the episode to begin with"""
    codes: str = PREDICTED
    """predicted: by the policy, as it acts; encoded: of the true continuation; or a file: .npy, integers
    [latent steps, N], or .pt, the published codes of videos by name (docs/import.md)"""
    video: str | None = None
    """name of the video in a .pt file; default: that of the image file"""
    segments: int = 0
    """clips of the dLDM that are joined; 0: all clips of a .pt file, else 1"""
    plan: Plan = "requery"
    """full: the policy predicts all codes from the first image; requery: those of each segment from its first frame"""
    anchor: Anchor = "coarse"
    """coarse: each video continues from its own last frame; rendered: both continue from the rendered one"""
    vdm: ExistingPath | None = None
    """folder of the dLDM stage: its VDM renders the video"""
    grayscale_control: bool | None = None
    """whether the control video is gray; null: as the VDM was trained"""
    sample_steps: int = 10
    """denoising steps of the VDM"""
    guidance: float = 1.0
    """weight of the codes against null codes; 1: the codes as they are; others need a VDM trained with
    aids.code_dropout, and take twice the time"""
    negative_prompt: ExistingPath | None = None
    """guidance against an embedded text instead of null codes, as in the published code: a .npy file, floats [tokens,
    vdm.context_width]"""
    sampling: Sampling = field(default_factory=Sampling)
    fps: Rate | None = None
    """frames per second of the video; default: the rate at which the policy was pre-trained"""
    enlarge: int = 4
    """side of the square of pixels that shows one pixel"""
    seed: int = 0
    """of sampled codes and of the VDM's noise"""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        for name in ("sample_steps", "enlarge"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.segments < 0:
            raise ValueError(f"segments must be at least 1 (0: as many as there are), found {self.segments}")
        if (self.policy is None) == (self.dldm is None):
            raise ValueError("give policy=DIR, or dldm=DIR (the folder of a dLDM stage) to decode codes of a file")
        if self.dldm is not None and self.codes == PREDICTED:
            raise ValueError("dldm=DIR has no policy that predicts codes: give codes=FILE or codes=encoded")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must not be negative, found {self.guidance}")
        if self.negative_prompt is not None and (self.guidance == 1 or self.vdm is None):
            raise ValueError("negative_prompt is for guidance: give vdm=DIR and a guidance other than 1")
        if Path(self.out).suffix.lower() not in (".mp4", ".m4v", ".mov"):
            raise ValueError(f"out={self.out}: give the name of a video, such as imagined.mp4; a json lies beside it")
        if (self.image is None) == (self.frame_cache is None):
            raise ValueError(
                "give the first image: either image=FILE or frame_cache=DIR (a frame cache) with episode=N"
            )
        if self.codes == ENCODED and self.frame_cache is None:
            raise ValueError(
                "codes=encoded needs a true continuation: give frame_cache=DIR and episode=N instead of image"
            )
        if self.codes == PREDICTED and self.prompt is None and self.frame_cache is None:
            raise ValueError("codes=predicted needs an instruction, such as prompt='open the drawer'")
        if self.anchor == "rendered" and self.vdm is None:
            raise ValueError("anchor=rendered needs a VDM that renders: vdm=DIR, the folder of the dLDM stage")
