"""The configuration of the policy: backbone, adapters, images, prompt, sampling and action head.

Place in the flow: configs/model -> `PolicyConfig` -> `ar_policy.py`. Nothing here needs torch, so that programs can
explain their options without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.limits import Count

LatentInit = Literal["fsq", "normal"]
Acting = Literal["expected", "sampled", "argmax", "parallel", "none"]
"""what the policy reads in the slots of its codes, see `acting.py`"""
DECODING: tuple[Acting, ...] = ("expected", "sampled", "argmax")
"""acting modes that decode code by code; the others read null tokens"""
NORM_GROUPS = 8
"""of the norms between the image convolutions"""
MAX_IMAGE_PX = 4096
PRETRAINED_STAGES = 7
PRETRAINED_HALVINGS = 5
"""of the pretrained image encoder: each expects an even side"""


@dataclass(frozen=True)
class LoRAConfig:
    """Size of the adapters."""

    rank: int = 16
    """of the low-rank updates"""
    alpha: float = 32.0
    """the adapters' output is scaled by alpha / rank"""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"lora.rank and lora.alpha must be positive, found {self.rank} and {self.alpha}")


@dataclass(frozen=True)
class BackboneConfig:
    """Size of the embedded Llama, or the name of a pretrained model. Defaults: a tiny Llama, about 1 M parameters."""

    hidden: Count = 128
    """width of the language model; with `weights` it comes from there, like the sizes below"""
    ffn: Count = 384
    """width of the feed-forward layers"""
    layers: Count = 4
    """transformer blocks"""
    heads: Count = 4
    """attention heads"""
    kv_heads: Count = 2
    """heads of keys and values (grouped-query attention)"""
    max_positions: Count = 1024
    """longest sequence, in tokens"""
    tokenizer: Literal["words", "bytes"] = "words"
    """words: one token for each of about 500 words of robot instructions, bytes for the rest; bytes: bytes alone, about
    four times as many tokens"""
    weights: str | None = None
    """folder or hub id of a transformers model with safetensors weights; the sizes above are then not used"""
    latent_init: LatentInit = "fsq"
    """new rows of codes: fsq, neighbors in the codebook start as neighbors; normal, independent rows"""
    pad_to_multiple_of: int = 1
    """round the embedding tables up to a multiple of this; the extra rows are never used"""
    train: Literal["full", "freeze_base", "lora"] = "full"
    """what latent pre-training trains: everything; the new rows alone; adapters and the new rows"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """train=lora: size of the adapters"""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"backbone: hidden ({self.hidden}) must be a multiple of heads ({self.heads}), "
                f"and heads a multiple of kv_heads ({self.kv_heads})"
            )
        if self.pad_to_multiple_of < 1:
            raise ValueError(f"backbone.pad_to_multiple_of must be at least 1, found {self.pad_to_multiple_of}")
        if self.train != "full" and self.weights is None:
            raise ValueError(
                f"backbone.train={self.train} keeps the base model as it is, but the embedded one begins untrained; "
                "set backbone.weights, or train=full"
            )


@dataclass(frozen=True)
class PolicyConfig:
    """Backbone, image input and prompt layout. Defaults: the embedded tiny policy."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    image: Literal["pixels", "pretrained", "features", "discrete", "vlm"] = "pixels"
    """pixels: a small trainable convolution stack; pretrained: EfficientNet-Lite0 with ImageNet weights, from a package
    of others; features: f_0 of the frozen dLDM encoder; discrete: a fixed tokenizer's ids; vlm: the image encoder of
    backbone.weights, a vision-language model"""
    image_px: Count = 64
    """side of the square image that the policy gets"""
    image_widths: tuple[int, ...] = (32, 64, 128, 128)
    """pixels: channels of the convolutions, multiples of 8; each halves the side, the last grid is the image tokens"""
    image_block: Count = 1
    """pixels: side of the square of pixels that is one place before the first convolution"""
    image_stages: Count | None = None
    """pretrained: stages of the network, 1 to 7; the output of the last is the image tokens, one for each square of 16
    pixels after stages 4 and 5, of 32 after 6 and 7; null: 5"""
    image_frozen: Count | None = None
    """pretrained: stages that keep their ImageNet weights, with the convolution before them; null: all layers train"""
    image_grid: int = 4
    """features: the feature map is pooled to a grid of this side"""
    image_patch: int = 8
    """discrete: side of the patch that becomes one token"""
    text_limit: Count = 64
    """most tokens of an instruction; the rest is cut off"""
    queries: Count = 4
    """N, codes per latent step"""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """values of each FSQ dimension of a code; those of the dLDM"""
    restrict_softmax: bool = False
    """aids.restrict_softmax: the loss compares latent tokens with one another; false: with the whole vocabulary"""

    def __post_init__(self) -> None:
        if not 1 <= self.image_px <= MAX_IMAGE_PX:
            raise ValueError(f"policy.image_px must lie in 1..{MAX_IMAGE_PX}, found {self.image_px}")
        smallest = self.image_block * 2 ** len(self.image_widths)
        if self.image == "pixels" and (self.image_block < 1 or self.image_px % smallest):
            raise ValueError(
                f"policy.image_px must be a multiple of {smallest} (blocks of {self.image_block}, "
                f"{len(self.image_widths)} halvings), found {self.image_px}"
            )
        if not self.image_widths or any(width < 1 or width % NORM_GROUPS for width in self.image_widths):
            raise ValueError(f"policy.image_widths must be multiples of {NORM_GROUPS}, found {self.image_widths}")
        if not self.frozen_stages <= self.pretrained_stages <= PRETRAINED_STAGES:
            raise ValueError(
                f"policy.image_stages must lie in 1..{PRETRAINED_STAGES} and policy.image_frozen not above it, found "
                f"{self.pretrained_stages} and {self.frozen_stages}"
            )
        if self.image == "pretrained" and self.image_px % 2**PRETRAINED_HALVINGS:
            raise ValueError(
                f"policy.image_px must be a multiple of {2**PRETRAINED_HALVINGS} with image=pretrained, found "
                f"{self.image_px}"
            )
        if self.image_grid < 1 or self.image_patch < 2:
            raise ValueError(
                "policy.image_grid must be at least 1 and policy.image_patch at least 2, found "
                f"{self.image_grid} and {self.image_patch}"
            )
        if self.image == "discrete" and self.image_px % self.image_patch:
            raise ValueError(
                f"policy.image_px must be a multiple of policy.image_patch={self.image_patch}, found {self.image_px}"
            )
        if self.image == "vlm" and self.backbone.weights is None:
            raise ValueError("policy.image=vlm needs policy.backbone.weights, a vision-language model")

    # Null in the configuration by default, as in runs from before there were these keys.
    @property
    def pretrained_stages(self) -> int:
        """Stages of the pretrained image encoder."""
        return self.image_stages or 5

    @property
    def frozen_stages(self) -> int:
        """Stages of it that do not train."""
        return self.image_frozen or 0


@dataclass(frozen=True)
class Sampling:
    """How the next code is chosen: the likeliest at temperature 0, else sampled from what top_k and top_p leave."""

    temperature: float = 0.0
    """of predicted codes; 0 takes the most likely one"""
    top_k: int | None = None
    """sample from the k likeliest codes"""
    top_p: float = 1.0
    """sample from the likeliest codes that together have at least this probability"""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                "temperature must not be negative, top_k at least 1 and top_p in (0, 1], found "
                f"{self.temperature}, {self.top_k} and {self.top_p}"
            )


@dataclass(frozen=True)
class ActionHeadConfig:
    """Size of the head."""

    hidden: Count = 1024
    """width of the one hidden layer is 4 * min(D, hidden)"""
    pose: bool = False
    """a second output for training: the end effector's pose, see `ActionHead.end_effector_pose`"""
    last_code: bool = True
    """read N + 1 states of a latent step, those that predict its codes and the one after its last code; false: N"""
    bins: int | None = None
    """bins of each number of an action, which the head then classifies by cross-entropy, as LAPA does with 256; their
    borders are quantiles of the labels. null: the head gives the numbers themselves, by an L2 loss"""

    def __post_init__(self) -> None:
        if self.bins is not None and self.bins < 2:
            raise ValueError(f"head.bins must be at least 2, or null, found {self.bins}")

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any]) -> ActionHeadConfig:
        """Return the configuration of a checkpoint's head; the first ones did not read the last code."""
        return config_from(cls, {"last_code": False, **config["head"]})
