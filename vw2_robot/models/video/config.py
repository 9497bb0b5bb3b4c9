"""The configuration of the video model: the transformer, its codec, and the sizes that others define.

Place in the flow: configs/model -> `VDMConfig` -> `vdm.py`, `CodecConfig` -> `video_codec.py`. Nothing
here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vw2_robot.limits import Count, ExistingPath, Rate


@dataclass(frozen=True)
class WanConfig:
    """Size of the VAE. Defaults: Wan 2.1, 126.9 M parameters. Its stride in time is 4 in both versions."""

    version: Literal["2.1", "2.2"] | None = None
    """2.1, as null: 16 latent channels, 8 pixels in space; 2.2 (of the 5B model): 48 channels, 16 pixels"""
    base_dim: int = 96
    """channels of the first level; 160 in version 2.2"""
    decoder_base_dim: Count | None = None
    """channels of the decoder's last level; null: base_dim; 256 in version 2.2"""
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    """channels of each level over base_dim"""
    res_blocks: int = 2
    """residual blocks per level"""

    def __post_init__(self) -> None:
        if len(self.dim_mult) != 4:
            raise ValueError(f"codec.wan.dim_mult needs four numbers (three halvings of space), found {self.dim_mult}")

    @property
    def channels(self) -> int:
        """Return C, the latent channels."""
        return 48 if self.version == "2.2" else 16

    @property
    def block(self) -> int:
        """Return the side of the square of pixels that becomes one place of the latent grid."""
        return 16 if self.version == "2.2" else 8


@dataclass(frozen=True)
class CodecConfig:
    """The kind of codec, its block size, and how many of the lowest frequencies `dct` keeps along each axis."""

    kind: Literal["dct", "wan"] = "dct"
    """pixels to the latents of the video model. dct: fixed cosine transform; wan: pretrained video VAE"""
    stride: Count = 4
    """frames per latent frame after the first"""
    block: Count = 4
    """dct only: side of the square of pixels that is transformed"""
    keep: Count = 2
    """dct only"""
    weights: ExistingPath | None = None
    """wan only: a folder in diffusers' layout whose sub-folder vae/ is read when a run begins"""
    init: Literal["weights", "random"] = "weights"
    """wan only: a VAE with random weights, which encodes nothing of use, must be asked for"""
    wan: WanConfig = field(default_factory=WanConfig)
    precision: Literal["float32", "bf16"] = "bf16"
    """wan only: precision of the frozen weights and their arithmetic; latents are float32 in any case"""

    def __post_init__(self) -> None:
        if self.kind == "wan":
            if (self.stride, self.block) != (4, self.wan.block):
                raise ValueError(
                    f"codec.kind=wan of version {self.wan.version or '2.1'} has codec.stride=4 and "
                    f"codec.block={self.wan.block}, found {self.stride} and {self.block}"
                )
            return
        if self.weights is not None:
            raise ValueError(f"codec.weights={self.weights} is for codec.kind=wan; the DCT codec has no weights")
        if not 1 <= self.keep <= min(self.stride, self.block):
            raise ValueError(
                f"codec.keep must lie in 1 .. min(stride, block) = {min(self.stride, self.block)}, found {self.keep}"
            )

    @property
    def channels(self) -> int:
        """Return C, latent channels: three colors times keep^3 frequencies, or those of Wan."""
        return self.wan.channels if self.kind == "wan" else 3 * self.keep**3


@dataclass(frozen=True)
class VDMConfig:
    """Size of the transformer and how codes enter it. Defaults: the embedded tiny model (about 1 M parameters)."""

    frame_height: Count | None = None
    """of the frames that it renders, pixels; null: the dLDM's. The dLDM gets these clips made smaller"""
    frame_width: Count | None = None
    """of the frames that it renders, pixels; null: the dLDM's"""
    family: Literal["cosmos", "wan"] | None = None
    """the transformer of diffusers: cosmos, as null: Cosmos-Predict2 and 2.5; wan: Wan 2.1 and 2.2"""
    heads: Count = 4
    """attention heads"""
    head_dim: int = 32
    """width of an attention head"""
    layers: Count = 4
    """transformer blocks"""
    mlp_ratio: Rate = 2.0
    """width of the MLP over the width of the transformer"""
    adaln_lora_dim: int = 32
    """cosmos: rank of the adaptive layer norms' modulation"""
    rope_scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    """cosmos: of time, height and width; (1, 3, 3) in Cosmos-Predict2"""
    padding_channel: bool = False
    """a channel that marks padded pixels (none here), as pretrained weights have"""
    text_projection: Count | None = None
    """cosmos: width of the text that a layer of Cosmos-Predict2.5 reads (100352); codes enter behind this layer, whose
    weights are kept for stock diffusers and never learn; null: there is none"""
    context_width: Count = 64
    """D, width of the context that the transformer reads (1024 for Cosmos-Predict2, 4096 for Wan)"""
    projection: Literal["attention", "convolution"] = "attention"
    """how codes become context. attention: an MLP and causal self-attention, a null token in front (paper);
    convolution (cosmos): the released residual block along the row of codes, padded with zeros to `context_tokens`"""
    projection_width: Count | None = None
    """attention: width inside the code projection; null: context_width. convolution: channels of a code before the
    block; must be given"""
    context_tokens: Count = 512
    """convolution: keys of the cross-attention, those of zeros among them"""
    projection_layers: int = 1
    """of causal self-attention over the codes; 0: the MLP alone (Table A.2)"""
    projection_head_dim: Count = 64
    """width of an attention head of the code projection"""
    code_visibility: Literal["causal", "current", "none"] = "causal"
    """latent frame t attends to codes of steps <= t, of step t alone, or to all (release parity)"""
    temporal_causal_self_attention: bool = True
    """strict causality over latent frames; off for pretrained weights, whose prior is bidirectional"""
    prediction: Literal["velocity", "change"] = "velocity"
    """aids.prediction: what the network's output means. velocity: eps - x0, as in pretrained weights; change: the
    preconditioned difference of x0 from the first frame, from which the velocity follows. An untrained network then
    starts at a still image instead of at noise, so that it learns motion alone: for models trained from scratch"""
    sampling_shift: float | None = None
    """sampling steps are spaced evenly and moved to strong noise by this factor, as Wan's are (3 at 480p, 5 at 720p and
    for the 5B model); null: Karras spacing, as those of Cosmos-Predict2"""
    noise_shift: float = 1.0
    """aids.noise_shift: factor of the noise levels in training. Above 1 for latents whose motion is much larger than
    one, such as those of the DCT codec: weak noise hides no motion there, and the VDM learns to ignore the codes"""
    high_noise: float = 0.0
    """aids.high_noise: share of the training samples with so much noise that only codes tell where the clip goes (sigma
    from 4 to 1000, log-uniform); for models trained from scratch"""
    warp: bool = False
    """aids.warp_output: the change is predicted from frame 0 as a flow field moves it, instead of from a still frame
    (`latent_warp.py`); for models trained from scratch, with prediction=change and the DCT codec"""
    still_control: bool = False
    """aids.still_control: without a control video (prior, reader, `control_dropout`) the control branch gets frame 0
    repeated; off: it is left out there"""
    control: Literal["light", "full", "released", "none"] = "light"
    """light: an MLP on the coarse clip; full: copies of the first blocks; released: those with embedders of their own
    and 129 channels of control video, so that the published weights fit (docs/import.md)"""
    control_layers: int = 0
    """blocks that get a residual of the branch; 0: all (light), 3 (full, released)"""
    control_width: Count = 64
    """width inside the light branch"""
    code_dropout: float = 0.0
    """aids.code_dropout: probability per sample that all codes are hidden (null context), as classifier-free guidance
    needs it"""
    train: Literal["full", "lora", "frozen"] = "full"
    """what of the transformer is trained in phase 2 (Table A.3); projection and control branch always are"""
    lora_rank: int = 16
    """train=lora: rank of the adapters"""
    init: Literal["prior", "weights", "random"] = "prior"
    """what phase 2 begins with. prior: the video prior of `weights`, or without them of its stage; weights: that of
    `weights`, and of nothing else; random: random weights (Table A.3)"""
    weights: ExistingPath | None = None
    """folder in diffusers' layout whose transformer/ is the prior, instead of training one; for Cosmos also the .pt
    file that is released beside it"""
    frozen_precision: Literal["float32", "bf16"] = "float32"
    """lora and frozen, with `weights`: precision of the transformer's frozen weights; bf16 halves their memory"""

    def __post_init__(self) -> None:
        if (self.frame_height is None) != (self.frame_width is None):
            raise ValueError(
                f"give both of vdm.frame_height and vdm.frame_width, found {self.frame_height} and {self.frame_width}"
            )
        if self.head_dim < 12:
            raise ValueError(f"vdm.head_dim must be at least 12 (rotary split into three axes), found {self.head_dim}")
        if not 0 <= self.code_dropout < 1:
            raise ValueError(f"vdm.code_dropout must lie in [0, 1), found {self.code_dropout}")
        if not 0 <= self.high_noise <= 1:
            raise ValueError(f"vdm.high_noise must lie in [0, 1], found {self.high_noise}")
        if self.warp and (self.prediction != "change" or self.weights is not None):
            raise ValueError(
                "aids.warp_output=true is for models trained from scratch that predict a change: set "
                "aids.prediction=change and no vdm.weights, found "
                f"prediction={self.prediction} and weights={self.weights}"
            )
        for name, factor in (("noise_shift", self.noise_shift), ("sampling_shift", self.sampling_shift)):
            if factor is not None and not factor > 0:
                raise ValueError(f"vdm.{name} must be positive, found {factor}")
        if self.family == "wan" and (self.warp or self.padding_channel or self.text_projection):
            raise ValueError(
                "vdm.family=wan has neither a warp output nor the channel and the layer of Cosmos: found "
                f"vdm.warp={self.warp}, vdm.padding_channel={self.padding_channel} and "
                f"vdm.text_projection={self.text_projection}"
            )
        if self.family == "wan" and (self.projection == "convolution" or self.control == "released"):
            raise ValueError(
                "vdm.projection=convolution and vdm.control=released are for published weights of vdm.family=cosmos, "
                f"found family=wan, projection={self.projection} and control={self.control}"
            )
        if self.projection == "convolution" and self.projection_width is None:
            raise ValueError(
                "vdm.projection=convolution needs vdm.projection_width, the channels of a code before the block; the "
                "published weights have 256"
            )
        if len(self.rope_scale) != 3:
            raise ValueError(f"vdm.rope_scale needs three numbers (time, height, width), found {self.rope_scale}")
        if self.projection == "convolution" and self.code_visibility != "none":
            raise ValueError(
                "vdm.projection=convolution gives every frame all codes, so vdm.code_visibility must be none, found "
                f"{self.code_visibility}"
            )
        if not 0 <= self.control_layers <= self.layers or self.controlled > self.layers:
            raise ValueError(
                f"vdm.control_layers must lie in 0 .. vdm.layers = {self.layers}, found {self.control_layers} "
                f"({self.controlled} with vdm.control={self.control})"
            )
        if self.lora_rank < 1:
            raise ValueError(f"vdm.lora_rank must be at least 1, found {self.lora_rank}")
        if self.weights is not None and self.init == "random":
            raise ValueError(f"vdm.init=random and vdm.weights={self.weights} contradict each other; drop one")
        if self.frozen_precision == "bf16" and (self.train == "full" or self.weights is None):
            raise ValueError(
                "vdm.frozen_precision=bf16 is for weights that never learn: it needs vdm.weights and vdm.train=lora or "
                f"frozen, found weights={self.weights} and train={self.train}"
            )

    @property
    def width(self) -> int:
        """Return W, the width of the transformer's tokens."""
        return self.heads * self.head_dim

    @property
    def controlled(self) -> int:
        """Return how many blocks get a residual of the control branch."""
        return self.control_layers or {"light": self.layers, "full": 3, "released": 3, "none": 0}[self.control]


class Geometry(NamedTuple):
    """Sizes that other parts define: latent channels and grid, latent steps, codes per step, code dimensions."""

    channels: int
    latent_steps: int
    height: int
    width: int
    queries: int
    fsq_dims: int
