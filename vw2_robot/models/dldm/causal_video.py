"""The causal video encoder and decoder of the dLDM: 3-D convolutions and attention that never see a later frame.

Place in the flow: video -> features -> video, the trunk of the dLDM. MAGVITv2 style blocks, the Cosmos-Tokenize1
DV8x16x16 layout at paper size. Feature step 0 holds frame 0 alone; step k holds frames s(k-1)+1 .. sk.

Time is the second axis everywhere ([B, T, C, H, W]), so that space folds into the batch without a copy. Causality:
convolutions pad on the left with the first frame, norms run per frame (a norm pooled over time would leak the future),
temporal attention is lower-triangular. There is no bottleneck here; this is not a variational autoencoder.

Nearly all memory of dLDM training is what these layers keep for the backward pass (docs/memory.md). Two of them
therefore keep their input alone and compute the rest again: the temporal convolution its taps, the norm float32.
"""

# B batch · T frames · K feature steps · C channels · H, W pixels · h, w feature grid · s temporal stride
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..dense import Dense, dense
from .code_attention import CodeAttention, Codes, code_attention
from .config import DLDMConfig, LevelConfig, StemConfig
from .frame_norm import FrameNorm


def _autocast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the precision that autocast gives a convolution; inside our own functions it gives none."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        return tuple(tensor.to(dtype) for tensor in (x, *weights))
    return (x, *weights)


def _padded(x: Float[Tensor, "B T C H W"], copies: int) -> Float[Tensor, "B C T2 HW"]:
    """Return the clip as one image per sample, time above space, with that many copies of frame 0 before it."""
    image = x.flatten(3).transpose(1, 2)
    return torch.cat([image[:, :, :1]] * copies + [image], dim=2)


class _TemporalConv(torch.autograd.Function):
    """A convolution along time that keeps its frames for the backward pass, not their padded copy.

    Time and space are the two axes of an image, so it is a 2-D convolution with a kernel of k_t x 1: in channels-last
    memory that needs no copy but the padding. `F.conv3d` takes 2.5 to 4 times as long on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B T C H W"], weight: Float[Tensor, "C2 C k 1"], bias: Tensor, stride: int
    ) -> Float[Tensor, "B T2 C2 H W"]:
        """Convolve; frame 0 stands for the frames before the clip."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        # With stride 1 a frame sees none after its own, and `Downsample` repeats frame 0 before it halves time.
        y = F.conv2d(_padded(x, weight.shape[2] - stride), weight, bias, stride=(stride, 1))
        return y.transpose(1, 2).unflatten(3, x.shape[3:])

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "B T2 C2 H W"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of frames, weight and bias."""
        x, weight = ctx.saved_tensors
        copies = weight.shape[2] - ctx.stride
        grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad.flatten(3).transpose(1, 2),
            _padded(x, copies),
            weight,
            [weight.shape[0]],  # size of the bias
            [ctx.stride, 1],
            [0, 0],  # padding
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],
            1,  # group
            list(ctx.needs_input_grad[:3]),
        )
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            # Frame 0 also stood for the frames before it. A copy without padding, so that what follows can view it.
            by_frame = grad_padded.permute(0, 2, 3, 1)  # [B, T2, HW, C]
            kept = by_frame[:, copies:].contiguous()
            kept[:, 0] += by_frame[:, :copies].sum(1)
            grad_x = rearrange(kept, "b t (h w) c -> b t c h w", h=x.shape[3])
        return grad_x, grad_weight, grad_bias, None


class CausalConv3d(nn.Module):
    """A convolution whose output at frame t sees frames <= t: the past is padded with copies of the first frame.

    The kernel is flat in time or in space. Equal to `F.conv3d` on the padded clip (tested), but run as 2-D.
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
        assert kernel[0] == 1 or kernel[1:] == (1, 1), f"a kernel is flat in time or in space, found {kernel}"
        self.kernel = kernel
        self.temporal_stride = temporal_stride
        self.spatial_stride = spatial_stride
        self.weight = nn.Parameter(torch.empty(width_out, width_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Convolve; T2 = T / temporal_stride, height and width shrink by spatial_stride."""
        k_t, k_h, k_w = self.kernel
        if k_t > 1:
            inputs = _autocast(x, self.weight[..., 0], self.bias)
            y: Tensor = _TemporalConv.apply(*inputs, self.temporal_stride)  # type: ignore[no-untyped-call]
            return y
        if self.kernel == (1, 1, 1):
            y = dense(rearrange(x, "b t c h w -> b t h w c"), self.weight.flatten(1), self.bias)
            return rearrange(y, "b t h w c -> b t c h w")
        frames = x.flatten(0, 1)
        padding = (k_h // 2, k_w // 2)
        if self.spatial_stride > 1:
            # Right and bottom only, as in the release: an even side halves exactly.
            frames = F.pad(frames, (0, k_w - 2, 0, k_h - 2))
            padding = (0, 0)
        y = F.conv2d(frames, self.weight[:, :, 0], self.bias, stride=self.spatial_stride, padding=padding)
        return y.unflatten(0, x.shape[:2])


class FactorizedConv(nn.Sequential):
    """A spatial 3 x 3 convolution followed by a causal temporal one of length 3."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(CausalConv3d(width_in, width_out, (1, 3, 3)), CausalConv3d(width_out, width_out, (3, 1, 1)))


class ResidualBlock(nn.Module):
    """(FrameNorm, SiLU, factorized convolution) twice, plus a skip."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(width_in, silu=True)
        self.conv1 = FactorizedConv(width_in, width_out)
        self.norm2 = FrameNorm(width_out, silu=True)
        self.conv2 = FactorizedConv(width_out, width_out)
        self.skip = nn.Identity() if width_in == width_out else CausalConv3d(width_in, width_out, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C2 H W"]:
        """Return the block's output; only the width may change."""
        h = self.conv1(self.norm1(x))
        out: Tensor = self.skip(x) + self.conv2(self.norm2(h))
        return out


class FrameAttention(nn.Module):
    """Single-head self-attention inside each frame (`axis="space"`) or along the past of each pixel (`axis="time"`)."""

    def __init__(self, width: int, *, axis: Literal["space", "time"]) -> None:
        super().__init__()
        self.axis = axis
        self.norm = FrameNorm(width)
        self.qkv = Dense(width, 3 * width)  # queries, keys and values as one product
        self.out = Dense(width, width)

    def forward(self, x: Float[Tensor, "B T C h w"]) -> Float[Tensor, "B T C h w"]:
        """Attend, and add the result to `x`."""
        tokens = rearrange(self.norm(x), "b t c h w -> b t (h w) c")
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        # Attention runs over the last axis but one, for each entry of the two axes before it.
        if self.axis == "space":
            q, k, v = (part.flatten(0, 1)[:, None] for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v).view_as(tokens)
        else:
            # `is_causal` lets a frame attend to itself and the past only.
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return x + rearrange(self.out(mixed), "b t (h w) c -> b t c h w", h=x.shape[3])


class Downsample(nn.Module):
    """Halve space and/or time: strided convolution plus average pooling, then 1 x 1 x 1. Time: 1 + 2m -> 1 + m."""

    def __init__(self, width: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.time = time
        self.space = space
        self.conv_space = CausalConv3d(width, width, (1, 3, 3), spatial_stride=2) if space else None
        self.conv_time = CausalConv3d(width, width, (3, 1, 1), temporal_stride=2) if time else None
        self.mix = CausalConv3d(width, width, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C H2 W2"]:
        """Return the smaller grid. Height and width must be even where space is halved, T odd where time is."""
        if self.conv_space is not None:
            x = self.conv_space(x) + F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        if self.conv_time is not None:
            # Frame 0 is repeated, so that it is pooled with itself and stays a step of its own.
            rows = rearrange(x, "b t c h w -> b t h w c")
            padded = rearrange(torch.cat([rows[:, :1], rows], dim=1), "b t h w c -> b t c h w")
            pooled = 0.5 * (padded[:, 0::2] + padded[:, 1::2])
            x = self.conv_time(padded) + pooled
        out: Tensor = self.mix(x)
        return out


class Upsample(nn.Module):
    """The mirror of `Downsample`: nearest repeat (in time without the first copy), convolution, 1 x 1 x 1."""

    def __init__(self, width_in: int, width_out: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.time = time
        self.space = space
        self.conv = FactorizedConv(width_in, width_in) if time else CausalConv3d(width_in, width_in, (1, 3, 3))
        self.mix = CausalConv3d(width_in, width_out, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Return the larger grid: time 1 + m -> 1 + 2m, space doubled."""
        if self.space:
            x = F.interpolate(x.flatten(0, 1), scale_factor=2.0, mode="nearest").unflatten(0, x.shape[:2])
        if self.time:
            # Frame 0 is a step of its own: it is not doubled, or the video would grow to 2 + 2m frames.
            twice = torch.arange(1, 2 * x.shape[1], device=x.device) // 2
            rows = rearrange(x, "b t c h w -> b t h w c").index_select(1, twice)
            x = rearrange(rows, "b t h w c -> b t c h w")
        out: Tensor = self.mix(x + self.conv(x))
        return out


class Patcher(nn.Module):
    """Pixels <-> channels, without loss or weights. The first frame is repeated, so that it fills a patch alone."""

    matrix: Tensor

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.t = config.temporal_patch_size
        self.s = config.spatial_patch_size
        size = self.t * self.s * self.s
        matrix = torch.eye(size)
        if config.patch == "haar":
            # A separable transform: one matrix for time, height and width together.
            matrix = torch.kron(torch.kron(_haar(self.t), _haar(self.s)), _haar(self.s))
        self.register_buffer("matrix", matrix, persistent=False)
        self.is_identity = config.patch == "pixel"
        self.channels = 3 * size

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K h w C"]:
        """Return patches, channels last. T must be 1 + a multiple of the temporal patch, H and W of the spatial one."""
        x = torch.cat([x[:, :1].expand(-1, self.t - 1, -1, -1, -1), x], dim=1)
        y = rearrange(x, "b (k p) c (h q) (w r) -> b k h w c (p q r)", p=self.t, q=self.s, r=self.s)
        y = y if self.is_identity else y @ self.matrix.T
        return y.flatten(-2)

    def inverse(self, y: Float[Tensor, "B K h w C"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels: the exact inverse of `forward`, without the copies of the first frame."""
        y = y.unflatten(-1, (3, -1))
        y = y if self.is_identity else y @ self.matrix  # orthonormal: the inverse is the transpose
        x = rearrange(y, "b k h w c (p q r) -> b (k p) c (h q) (w r)", p=self.t, q=self.s, r=self.s)
        return x[:, self.t - 1 :]


def _haar(size: int) -> Tensor:
    """Return the orthonormal Haar packet transform of `size` samples (all sub-bands split again), rows = basis."""
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2.0)
    matrix = torch.eye(1)
    while matrix.shape[0] < size:
        matrix = torch.kron(step, matrix)
    return matrix


BLOCK_CLASSES = (ResidualBlock, FrameAttention, CodeAttention, Downsample, Upsample)
"""The classes of the trunk's blocks: the units that are compiled, recomputed, or sharded over ranks one by one."""


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """Return the blocks inside an encoder, a decoder or a whole dLDM, in the order in which they were built."""
    return [module for module in trunk.modules() if isinstance(module, BLOCK_CLASSES)]


def _run(body: nn.Sequential, x: Tensor, *, checkpointing: bool, codes: Codes | None = None) -> Tensor:
    """Run the blocks in order; with `checkpointing` only their inputs are kept for the backward pass."""
    for block in body:
        inputs: tuple[Any, ...] = (x,)
        if isinstance(block, CodeAttention):
            if codes is None:  # a clip of frame 0 alone
                continue
            inputs = (x, codes)
        recomputed = checkpointing and torch.is_grad_enabled()
        x = checkpoint(block, *inputs, use_reentrant=False) if recomputed else block(*inputs)
    return x


def compile_in_place(blocks: Iterable[nn.Module]) -> None:
    """Compile each block by itself, without graph breaks; names of parameters stay, the first step takes minutes."""
    # All blocks of a class share one cache, with an entry for each width, grid and mode; torch's limit of 8 entries is
    # for functions that are compiled over and over by mistake.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    for block in blocks:
        # Shapes are constants of the compiled code: sizes that vary would make slower code, and clips have one size.
        block.compile(fullgraph=True, dynamic=False)


def _end_convolution(stem: StemConfig, width_in: int, width_out: int) -> FactorizedConv | CausalConv3d:
    """Return the convolution between patches and the trunk, the first of the encoder or the last of the decoder."""
    if stem.factorized:
        return FactorizedConv(width_in, width_out)
    return CausalConv3d(width_in, width_out, (1, stem.spatial_kernel_size, stem.spatial_kernel_size))


class CausalEncoder(nn.Module):
    """The encoder: clip -> features of the last level's width, one step for frame 0 and one per `stride` frames."""

    checkpointing = False

    def __init__(self, stem: StemConfig, levels: Sequence[LevelConfig]) -> None:
        super().__init__()
        self.patcher = Patcher(stem)
        width = stem.width or levels[0].width
        self.stem = _end_convolution(stem, self.patcher.channels, width)
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
        # The middle attends at the coarsest resolution, whether the levels do or not.
        self.body = nn.Sequential(*body, *middle, FrameNorm(width, silu=True))

    def compile_blocks(self) -> None:
        """Compile the blocks in place, the last norm included."""
        compile_in_place(self.body)

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K C h w"]:
        """Return features of pixels in [-1, 1]; T = 1 + a multiple of the stride."""
        patches = self.patcher(x)
        h = self.stem(rearrange(patches, "b k h w c -> b k c h w"))
        return _run(self.body, h, checkpointing=self.checkpointing)


class CausalDecoder(nn.Module):
    """The decoder: features -> clip, the mirror of `CausalEncoder`'s levels. `CodeDecoder` adds the codes before it."""

    checkpointing = False

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        stem = config.stem
        self.patcher = Patcher(stem)
        width = context = config.levels[-1].width
        attending = len(config.levels) - len(config.attending_levels)  # from there on, the lowest ones
        body: list[nn.Module] = []
        for number, level in reversed(list(enumerate(config.levels))):
            # The encoder down-samples after a level's blocks, so the decoder up-samples before them.
            if level.downsample_time or level.downsample_space:
                # As released, the first block after it changes the width.
                above = width if config.released_decoder else level.width
                body.append(Upsample(width, above, time=level.downsample_time, space=level.downsample_space))
                width = above
            for _ in range(level.blocks + config.decoder_extra_blocks):
                body.append(ResidualBlock(width, level.width))
                width = level.width
                if number >= attending:
                    body.append(code_attention(config, width, context=context))
                if level.attention:
                    body += [FrameAttention(width, axis="space"), FrameAttention(width, axis="time")]
        self.body = nn.Sequential(*body, FrameNorm(width, silu=True))
        self.head = _end_convolution(stem, width, self.patcher.channels)

    def compile_blocks(self) -> None:
        """Compile the blocks in place, the last norm included."""
        compile_in_place(self.body)

    def features(self, h: Float[Tensor, "B K C h w"], codes: Codes | None = None) -> Float[Tensor, "B K2 C2 h2 w2"]:
        """Return the last features before pixels, on the grid of patches; K2 - 1 steps of patches after frame 0."""
        return _run(self.body, h, checkpointing=self.checkpointing, codes=codes)

    def pixels(self, features: Float[Tensor, "B K2 C2 h2 w2"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels, trained toward [-1, 1] and not clamped."""
        return self.patcher.inverse(rearrange(self.head(features), "b k c h w -> b k h w c"))

    def forward(self, h: Float[Tensor, "B K C h w"], codes: Codes | None = None) -> Float[Tensor, "B T 3 H W"]:
        """Return the pixels of the decoded clip."""
        return self.pixels(self.features(h, codes))
