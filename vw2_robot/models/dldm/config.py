"""The configuration of the dLDM, and what follows from it: stride, latent steps, grid, vocabulary.

Place in the flow: configs/model -> `DLDMConfig` -> `dldm.py`. Defaults are the paper's sizes; the switches are those of
its tables, of the release, and of the predecessor LAPA.
"""

# B batch · T frames · M latent steps · N codes per step · L code dimensions
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from vw2_robot.limits import Count


@dataclass(frozen=True)
class StemConfig:
    """The lossless rearrangement of pixels into the first feature grid; it has no weights."""

    patch: Literal["haar", "pixel"] = "haar"
    """haar: orthonormal Haar wavelets inside each patch; pixel: the pixels themselves."""
    temporal_patch_size: int = 4
    """frames that become one place of the feature map"""
    spatial_patch_size: int = 4
    """side of the square of pixels that becomes one place of the feature map"""
    spatial_kernel_size: int = 3
    """side of the convolution between channels and the first width (and back); 1 saves most of a tiny model's time"""
    width: Count | None = None
    """channels of the encoder before its first level; null: those of that level (release: 128)"""
    factorized: bool = False
    """both convolutions between patches and trunk are a spatial and a temporal one, each of length 3 (release)"""

    def __post_init__(self) -> None:
        for name, size in (
            ("temporal_patch_size", self.temporal_patch_size),
            ("spatial_patch_size", self.spatial_patch_size),
        ):
            if size < 1 or size & (size - 1):
                raise ValueError(f"stem.{name} must be a power of two, found {size}")
        if self.spatial_kernel_size % 2 == 0:
            raise ValueError(f"stem.spatial_kernel_size must be odd, found {self.spatial_kernel_size}")
        if self.factorized and self.spatial_kernel_size != 3:
            raise ValueError(f"stem.factorized=true has a kernel of side 3, found {self.spatial_kernel_size}")


@dataclass(frozen=True)
class LevelConfig:
    """One resolution of the trunk; down-sampling follows its blocks."""

    width: Count
    """channels"""
    blocks: Count = 2
    """residual blocks"""
    downsample_time: bool = False
    """halve the number of frames at the end of the level"""
    downsample_space: bool = False
    """halve height and width at the end of the level"""
    attention: bool = False
    """spatial and causal temporal attention after each block"""


@dataclass(frozen=True)
class QFormerConfig:
    """The learnable queries and what they attend to (method 1.3; the paper's three sources disagree)."""

    context: Literal["adjacent", "all", "current"] = "adjacent"
    """step k sees (f_{k-1}, f_k), all of f_0 .. f_k, or f_k alone"""
    depth: Count = 2
    """layers of cross-attention"""
    heads: Count = 4
    """attention heads"""
    last_residual: bool = False
    """the last cross-attention adds to its queries, which count twice in the comparison with keys; as in the release"""
    centered_positions: bool = False
    """positions of the grid are those of the places' centers in [-1, 1], not of their corners in [0, 1]; as in the
    release"""
    role_embedding: bool = False
    """aids.role_embedding: a learned embedding that marks previous and current frame"""
    value_pos: bool = False
    """aids.value_positions: position code on the values too, not on the keys only"""
    difference_values: bool = False
    """aids.difference_values, adjacent only: values of the previous frame enter with a learned gain that starts at -1,
    those of the current one at +1, so that even uniform attention reads the change instead of the mean"""


@dataclass(frozen=True)
class DLDMConfig:
    """Size and switches of the dLDM. Defaults: the paper's."""

    num_frames: int = 93
    """T, frames of a training clip"""
    height: Count = 240
    """of a training frame, pixels"""
    width: Count = 416
    """of a training frame, pixels"""
    stem: StemConfig = field(default_factory=StemConfig)
    levels: tuple[LevelConfig, ...] = (
        LevelConfig(width=256, downsample_space=True),
        LevelConfig(width=512, downsample_space=True),
        LevelConfig(width=512, attention=True),
    )
    """levels of the causal video encoder, from pixels inward; the decoder mirrors them"""
    queries: Count = 4
    """N, codes per latent step"""
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq: finite scalar quantization (paper); vq: a learned codebook, as in the predecessor LAPA"""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """values of each FSQ dimension, their product is V; with `vq` one number, V"""
    vq_width: Count = 32
    """vq: dimensions of a codebook entry"""
    z_channels: Count = 256
    """channels of the features before quantization"""
    z_norm: Literal["batch", "layer", "none"] = "none"
    """aids.standardize: normalization before FSQ, so that all its levels are used. layer: LayerNorm, then a linear
    layer of unit output variance; batch: the same, then each number standardized over the batch in training and by
    running statistics in eval (small runs collapse to one code without it); none: as in the release"""
    code_visibility: Literal["causal", "current"] = "causal"
    """decoder step k attends to the codes of steps <= k, or of step k alone"""
    code_attention: Literal["every", "lowest", "middle"] = "middle"
    """decoder blocks that attend to codes. middle: one before the levels, enough for small models; lowest: also each
    block of the lowest resolution (release); every: also each block of every resolution (Algorithm 1)"""
    decoder_extra_blocks: int = 0
    """residual blocks that a level of the decoder has beyond those of the encoder's (release: 1)"""
    released_decoder: bool = False
    """the decoder's blocks as released, so that the published weights fit (docs/import.md): attention to codes has
    one head and a norm over each frame, without embeddings or an MLP; the first block of a level changes the width; and
    `levels.attention` is the decoder's alone"""
    output: Literal["pixels", "change", "warp"] = "pixels"
    """aids.decoder_output: what the decoder predicts: the pixels themselves (paper); their change from the first frame;
    or a flow field that moves the pixels of the first frame, plus a change (`frame_warp.py`)"""
    post_quant: Literal["linear", "conv"] = "linear"
    """linear: each code is projected by itself; conv: with its two predecessors in the flat row (release)"""
    gap: int = 1
    """the model reads and reconstructs every gap-th frame; num_frames = 1 + gap makes it LAPA's pair of frames"""
    fixed_codes: Literal["pixel_differences"] | None = None
    """codes that are not learned, a control: the quantized change of pixels (`pixel_differences.py`). What is trained
    then decides no code; null: the learned codes"""

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"dldm.num_frames must be at least 2 (an anchor and one more), found {self.num_frames}")
        if self.gap < 1:
            raise ValueError(f"dldm.gap must be at least 1 (every frame), found {self.gap}")
        if self.quantizer == "vq" and len(self.fsq_levels) != 1:
            raise ValueError(
                f"dldm.quantizer=vq: dldm.fsq_levels must be one number, the codebook's size; found {self.fsq_levels}"
            )
        # The convolution along the row of codes would pass codes of earlier steps on.
        if self.post_quant == "conv" and self.code_visibility == "current":
            raise ValueError("dldm.post_quant=conv mixes codes of neighboring steps, so code_visibility must be causal")
        if self.fixed_codes is not None and (self.quantizer, self.gap) != ("fsq", 1):
            raise ValueError(f"dldm.fixed_codes={self.fixed_codes} needs dldm.quantizer=fsq and dldm.gap=1")
        if self.stem.factorized and self.output == "warp":
            raise ValueError("dldm.output=warp begins with a last convolution of zeros: set dldm.stem.factorized=false")
        if not self.levels:
            raise ValueError("dldm.levels is empty; give at least one resolution")
        if self.decoder_extra_blocks < 0:
            raise ValueError(f"dldm.decoder_extra_blocks must not be negative, found {self.decoder_extra_blocks}")
        if any(level.width % self.qformer.heads for level in self.attending_levels):
            raise ValueError(
                f"dldm.code_attention={self.code_attention}: widths of levels must be multiples of "
                f"{self.qformer.heads} heads, found {[level.width for level in self.levels]}"
            )
        shrink = self.stem.spatial_patch_size * 2 ** sum(level.downsample_space for level in self.levels)
        # Down-sampling halves exactly; a remainder would move the grid against the pixels.
        for name, size in (("height", self.height), ("width", self.width)):
            if size % shrink:
                raise ValueError(f"dldm.{name} must be a multiple of {shrink} (stem and down-sampling), found {size}")
        # CrossAttention of the queries works at half the width, split over the heads.
        if self.levels[-1].width % (2 * self.qformer.heads):
            raise ValueError(
                f"the last level's width {self.levels[-1].width} must be a multiple of 2 x {self.qformer.heads} heads"
            )

    @property
    def attending_levels(self) -> tuple[LevelConfig, ...]:
        """Return the levels whose blocks attend to codes in the decoder."""
        return {"middle": (), "lowest": self.levels[-1:], "every": self.levels}[self.code_attention]

    @property
    def encoder_levels(self) -> tuple[LevelConfig, ...]:
        """Return the levels as the encoder has them."""
        if not self.released_decoder:
            return self.levels
        return tuple(replace(level, attention=False) for level in self.levels)

    @property
    def temporal_stride(self) -> int:
        """Return s, frames per latent step."""
        return int(self.gap * self.stem.temporal_patch_size * 2 ** sum(level.downsample_time for level in self.levels))

    @property
    def latent_steps(self) -> int:
        """Return M, latent steps of a training clip."""
        return math.ceil((self.num_frames - 1) / self.temporal_stride)

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the feature grid."""
        shrink = self.stem.spatial_patch_size * 2 ** sum(level.downsample_space for level in self.levels)
        return self.height // shrink, self.width // shrink

    @property
    def vocabulary(self) -> int:
        """Return V, the number of different codes."""
        return math.prod(self.fsq_levels)

    @property
    def code_dims(self) -> int:
        """Return L, the numbers of one code: FSQ dimensions, or the width of a codebook entry with `quantizer=vq`."""
        return len(self.fsq_levels) if self.quantizer == "fsq" else self.vq_width
