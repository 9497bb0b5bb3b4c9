"""Causal 3-D convolutions: video -> features -> video, where nothing looks ahead in time.

Place in the flow: the trunk of the dLDM, encoder and decoder. Method specification section 1.2 (MAGVITv2 style blocks,
the Cosmos-Tokenize1 DV8x16x16 layout at paper size). Feature step 0 holds frame 0 alone; step k holds frames s(k-1)+1
.. sk.

Time is the second axis everywhere ([B, T, C, H, W]), so that space folds into the batch without a copy. Every operation
sees earlier frames only: convolutions pad on the left with the first frame, norms run per frame (a norm pooled over
time would leak the future), temporal attention is lower-triangular. Not a variational autoencoder; there is no
bottleneck here.
"""

# B batch · T frames · K feature steps · C channels · H, W pixels · h, w feature grid · s temporal stride
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vw2_robot.limits import Count


@dataclass(frozen=True)
class StemConfig:
    """How pixels become the first feature grid: a lossless rearrangement, no weights."""

    patch: Literal["haar", "pixel"] = "haar"
    """haar: orthonormal Haar wavelets inside each patch; pixel: the pixels themselves."""
    temporal_patch_size: int = 4
    spatial_patch_size: int = 4
    spatial_kernel_size: int = 3
    """side of the convolution between channels and the first width (and back); 1 saves most of a tiny model's time"""

    def __post_init__(self) -> None:
        for name, size in (
            ("temporal_patch_size", self.temporal_patch_size),
            ("spatial_patch_size", self.spatial_patch_size),
        ):
            if size < 1 or size & (size - 1):
                raise ValueError(f"stem.{name} must be a power of two, found {size}")
        if self.spatial_kernel_size % 2 == 0:
            raise ValueError(f"stem.spatial_kernel_size must be odd, found {self.spatial_kernel_size}")


@dataclass(frozen=True)
class LevelConfig:
    """One resolution of the trunk; the down-sampling happens after its blocks."""

    width: Count
    blocks: Count = 2
    downsample_time: bool = False
    downsample_space: bool = False
    attention: bool = False
    """spatial and causal temporal attention after each block"""


class CausalConv3d(nn.Module):
    """A convolution whose output at frame t sees frames <= t: the past is padded with copies of the first frame.

    Equal to `F.conv3d` on the padded clip (tested); kernels that are flat in time or in space run as 2-D convolutions,
    which is several times faster on a CPU.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: tuple[int, int, int],
        *,
        temporal_stride: int = 1,
        spatial_stride: int = 1,
    ) -> None:
        super().__init__()
        self.kernel, self.temporal_stride, self.spatial_stride = kernel, temporal_stride, spatial_stride
        self.weight = nn.Parameter(torch.empty(width_out, width_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Convolve; T2 = ceil(T / temporal_stride), height and width shrink by spatial_stride."""
        k_t, k_h, k_w = self.kernel
        pad = (k_t - 1) + (1 - self.temporal_stride)
        if pad > 0:
            x = torch.cat([x[:, :1].expand(-1, pad, -1, -1, -1), x], dim=1)
        frames = (x.shape[1] - k_t) // self.temporal_stride + 1
        if k_t == 1:
            x = x[:, :: self.temporal_stride]
            weight = self.weight[:, :, 0]
        else:  # the taps of one output frame, side by side in the channels
            x = torch.cat(
                [x[:, t : t + (frames - 1) * self.temporal_stride + 1 : self.temporal_stride] for t in range(k_t)],
                dim=2,
            )
            weight = self.weight.transpose(1, 2).flatten(1, 2)
        batch = x.shape[0]
        x = x.flatten(0, 1)
        padding = (k_h // 2, k_w // 2)
        if self.spatial_stride > 1:  # right and bottom only, as in the release: an even side halves exactly
            x, padding = F.pad(x, (0, k_w - 2, 0, k_h - 2)), (0, 0)
        y = F.conv2d(x, weight, self.bias, stride=self.spatial_stride, padding=padding)
        return y.unflatten(0, (batch, frames))


class FactorizedConv(nn.Sequential):
    """A spatial 3 x 3 convolution followed by a causal temporal one of length 3."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(CausalConv3d(width_in, width_out, (1, 3, 3)), CausalConv3d(width_out, width_out, (3, 1, 1)))


class FrameNorm(nn.Module):
    """Group norm with one group, separately for every frame: statistics never cross time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C H W"]:
        """Normalize each frame over channels and space."""
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ResidualBlock(nn.Module):
    """(FrameNorm, SiLU, factorized convolution) twice, plus a skip."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(width_in), FactorizedConv(width_in, width_out)
        self.norm2, self.conv2 = FrameNorm(width_out), FactorizedConv(width_out, width_out)
        self.skip = nn.Identity() if width_in == width_out else CausalConv3d(width_in, width_out, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C2 H W"]:
        """Shape is kept but for the width."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class FrameAttention(nn.Module):
    """Single-head self-attention inside each frame (`axis="space"`) or along the past of each pixel (`axis="time"`)."""

    def __init__(self, width: int, *, axis: Literal["space", "time"]) -> None:
        super().__init__()
        self.axis = axis
        self.norm = FrameNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T C h w"]) -> Float[Tensor, "B T C h w"]:
        """Attend and add."""
        batch, _, _, height, width = x.shape
        if self.axis == "space":
            tokens = rearrange(self.norm(x), "b t c h w -> (b t) (h w) c")
        else:
            tokens = rearrange(self.norm(x), "b t c h w -> (b h w) t c")
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        mixed = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.axis == "time").squeeze(1))
        if self.axis == "space":
            return x + rearrange(mixed, "(b t) (h w) c -> b t c h w", b=batch, h=height, w=width)
        return x + rearrange(mixed, "(b h w) t c -> b t c h w", b=batch, h=height, w=width)


class Downsample(nn.Module):
    """Halve space and/or time: strided convolution plus average pooling, then 1 x 1 x 1. Time: 1 + 2m -> 1 + m."""

    def __init__(self, width: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.conv_space = CausalConv3d(width, width, (1, 3, 3), spatial_stride=2) if space else None
        self.conv_time = CausalConv3d(width, width, (3, 1, 1), temporal_stride=2) if time else None
        self.mix = CausalConv3d(width, width, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C H2 W2"]:
        """Height and width must be even when space is halved; T odd when time is."""
        if self.conv_space is not None:
            x = self.conv_space(x) + F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        if self.conv_time is not None:
            padded = torch.cat([x[:, :1], x], dim=1)
            pooled = 0.5 * (padded[:, 0::2] + padded[:, 1::2])
            x = self.conv_time(padded) + pooled
        out: Tensor = self.mix(x)
        return out


class Upsample(nn.Module):
    """Mirror of `Downsample`: nearest repeat (in time: repeat, then drop the first copy), convolution, 1 x 1 x 1."""

    def __init__(self, width_in: int, width_out: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.conv = FactorizedConv(width_in, width_in) if time else CausalConv3d(width_in, width_in, (1, 3, 3))
        self.mix = CausalConv3d(width_in, width_out, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Time 1 + m -> 1 + 2m, space doubled."""
        if self.time:
            x = x.repeat_interleave(2, dim=1)[:, 1:]
        if self.space:
            x = F.interpolate(x.flatten(0, 1), scale_factor=2.0, mode="nearest").unflatten(0, x.shape[:2])
        out: Tensor = self.mix(x + self.conv(x))
        return out


class Patcher(nn.Module):
    """Pixels <-> channels, without loss or weights. The first frame is repeated so that it fills a patch alone."""

    matrix: Tensor

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.t, self.s = config.temporal_patch_size, config.spatial_patch_size
        size = self.t * self.s * self.s
        matrix = torch.eye(size)
        if config.patch == "haar":
            matrix = torch.kron(torch.kron(_haar(self.t), _haar(self.s)), _haar(self.s))
        self.register_buffer("matrix", matrix, persistent=False)
        self.is_identity = config.patch == "pixel"
        self.channels = 3 * size

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K h w C"]:
        """T must be 1 + a multiple of temporal_patch_size, H and W multiples of spatial_patch_size; channels last."""
        x = torch.cat([x[:, :1].expand(-1, self.t - 1, -1, -1, -1), x], dim=1)
        y = rearrange(x, "b (k p) c (h q) (w r) -> b k h w c (p q r)", p=self.t, q=self.s, r=self.s)
        y = y if self.is_identity else y @ self.matrix.T
        return y.flatten(-2)

    def inverse(self, y: Float[Tensor, "B K h w C"]) -> Float[Tensor, "B T 3 H W"]:
        """Exact inverse; the copies of the first frame are dropped, the last one stays."""
        y = y.unflatten(-1, (3, -1))
        y = y if self.is_identity else y @ self.matrix
        x = rearrange(y, "b k h w c (p q r) -> b (k p) c (h q) (w r)", p=self.t, q=self.s, r=self.s)
        return x[:, self.t - 1 :]


def _haar(size: int) -> Tensor:
    """The orthonormal Haar packet transform of `size` samples (all sub-bands split again), rows are basis vectors."""
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2.0)
    matrix = torch.eye(1)
    while matrix.shape[0] < size:
        matrix = torch.kron(step, matrix)
    return matrix


def _channels_first(conv: CausalConv3d, y: Float[Tensor, "B K h w C"]) -> Float[Tensor, "B K C2 h w"]:
    """Apply the stem to channels-last patches; 1 x 1 as a matrix product, before the wide tensor is transposed."""
    if conv.kernel == (1, 1, 1):
        return rearrange(F.linear(y, conv.weight.flatten(1), conv.bias), "b k h w c -> b k c h w")
    out: Tensor = conv(rearrange(y, "b k h w c -> b k c h w"))
    return out


def _channels_last(conv: CausalConv3d, h: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B K h w C2"]:
    """The mirror of `_channels_first`, for the head."""
    if conv.kernel == (1, 1, 1):
        return F.linear(rearrange(h, "b k c h w -> b k h w c"), conv.weight.flatten(1), conv.bias)
    return rearrange(conv(h), "b k c h w -> b k h w c")


def _run(body: nn.Sequential, x: Tensor, *, checkpointing: bool) -> Tensor:
    """The blocks in order; with `checkpointing` only their inputs are kept for the way back."""
    for block in body:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else block(x)
    return x


class CausalEncoder(nn.Module):
    """Clip -> features. Output width is that of the last level; one step per `stride` frames plus the first frame."""

    checkpointing = False

    def __init__(self, stem: StemConfig, levels: Sequence[LevelConfig]) -> None:
        super().__init__()
        self.patcher = Patcher(stem)
        width = levels[0].width
        self.stem = CausalConv3d(self.patcher.channels, width, (1, stem.spatial_kernel_size, stem.spatial_kernel_size))
        body: list[nn.Module] = []
        for level in levels:
            for _ in range(level.blocks):
                body.append(ResidualBlock(width, level.width))
                width = level.width
                if level.attention:
                    body += [FrameAttention(width, axis="space"), FrameAttention(width, axis="time")]
            if level.downsample_time or level.downsample_space:
                body.append(Downsample(width, time=level.downsample_time, space=level.downsample_space))
        middle = [
            ResidualBlock(width, width),
            FrameAttention(width, axis="space"),
            FrameAttention(width, axis="time"),
            ResidualBlock(width, width),
        ]
        self.body = nn.Sequential(*body, *middle, FrameNorm(width), nn.SiLU())

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K C h w"]:
        """Pixels in [-1, 1]; T = 1 + a multiple of the stride."""
        return _run(self.body, _channels_first(self.stem, self.patcher(x)), checkpointing=self.checkpointing)


class CausalDecoder(nn.Module):
    """Features -> clip: the up path that mirrors `CausalEncoder`. The middle, where codes enter, is the dLDM's."""

    checkpointing = False

    def __init__(self, stem: StemConfig, levels: Sequence[LevelConfig]) -> None:
        super().__init__()
        self.patcher = Patcher(stem)
        width = levels[-1].width
        body: list[nn.Module] = []
        for level in reversed(levels):
            if level.downsample_time or level.downsample_space:
                body.append(Upsample(width, level.width, time=level.downsample_time, space=level.downsample_space))
                width = level.width
            for _ in range(level.blocks):
                body.append(ResidualBlock(width, level.width))
                width = level.width
                if level.attention:
                    body += [FrameAttention(width, axis="space"), FrameAttention(width, axis="time")]
        self.body = nn.Sequential(*body, FrameNorm(width), nn.SiLU())
        self.head = CausalConv3d(width, self.patcher.channels, (1, stem.spatial_kernel_size, stem.spatial_kernel_size))

    def features(self, h: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B K2 C2 h2 w2"]:
        """The last features before pixels, on the grid of patches; K2 - 1 steps of patches after the first frame."""
        return _run(self.body, h, checkpointing=self.checkpointing)

    def pixels(self, features: Float[Tensor, "B K2 C2 h2 w2"]) -> Float[Tensor, "B T 3 H W"]:
        """Not clamped; trained toward pixels in [-1, 1]."""
        return self.patcher.inverse(_channels_last(self.head, features))

    def forward(self, h: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Features, then pixels."""
        return self.pixels(self.features(h))
