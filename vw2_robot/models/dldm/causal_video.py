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

from .config import LevelConfig, StemConfig


def _autocast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the precision that autocast gives a convolution; inside our own functions it gives none."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        return tuple(tensor.to(dtype) for tensor in (x, *weights))
    return (x, *weights)


def _tap(k: int, *, k_t: int, stride: int, num_frames: int) -> tuple[int, slice]:
    """Return how many output frames see a copy of frame 0 in tap `k`, and which input frames the others see there."""
    # Output frame t ends with input frame (t + 1) * stride - 1: with stride 1 it sees no frame after its own, and
    # `Downsample` repeats frame 0 before it halves time.
    shift = k - (k_t - stride)
    count = num_frames // stride
    copies = min(count, max(0, -(shift // stride)))
    return copies, slice(copies * stride + shift, max(0, (count - 1) * stride + shift + 1), stride)


def _side_by_side(x: Float[Tensor, "B T C H W"], k_t: int, stride: int) -> Float[Tensor, "BT2 C2 H W"]:
    """Return the `k_t` frames that each output frame sees, as channels of one image."""
    batch, num_frames, *image = x.shape
    taps = x.new_empty(batch, num_frames // stride, k_t, *image)
    for k in range(k_t):
        copies, frames = _tap(k, k_t=k_t, stride=stride, num_frames=num_frames)
        taps[:, :copies, k] = x[:, :1]
        taps[:, copies:, k] = x[:, frames]
    return taps.flatten(2, 3).flatten(0, 1)


class _TemporalConv(torch.autograd.Function):
    """A convolution over taps in time that keeps its frames for the backward pass, not their `k_t` copies side by side.

    The arithmetic is that of `F.conv2d` on `_side_by_side`. `F.conv3d` would keep as little, but takes up to a
    quarter longer on a CPU at the widths of `model=h200`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B T C H W"],
        weight: Tensor,
        bias: Tensor,
        k_t: int,
        stride: int,
        spatial_stride: int,
        padding: tuple[int, int],
    ) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Convolve; frame 0 stands for the frames before the clip."""
        ctx.save_for_backward(x, weight)
        ctx.options = (k_t, stride, spatial_stride, padding)
        y = F.conv2d(_side_by_side(x, k_t, stride), weight, bias, stride=spatial_stride, padding=padding)
        return y.unflatten(0, (x.shape[0], -1))

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "B T2 C2 H2 W2"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of frames, weight and bias."""
        x, weight = ctx.saved_tensors
        k_t, stride, spatial_stride, padding = ctx.options
        grad_taps, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad.flatten(0, 1),
            _side_by_side(x, k_t, stride),
            weight,
            [weight.shape[0]],  # size of the bias
            [spatial_stride] * 2,
            list(padding),
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],
            1,  # group
            list(ctx.needs_input_grad[:3]),
        )
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            # A frame was a tap of up to `k_t` output frames, and frame 0 also stood for the frames before it.
            grad_x = torch.zeros_like(x)
            grad_taps = grad_taps.unflatten(0, grad.shape[:2]).unflatten(2, (k_t, -1))
            for k in reversed(range(k_t)):
                copies, frames = _tap(k, k_t=k_t, stride=stride, num_frames=x.shape[1])
                grad_x[:, frames] += grad_taps[:, copies:, k]
                grad_x[:, 0] += grad_taps[:, :copies, k].sum(1)
        return grad_x, grad_weight, grad_bias, None, None, None, None


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
        self.kernel = kernel
        self.temporal_stride = temporal_stride
        self.spatial_stride = spatial_stride
        self.weight = nn.Parameter(torch.empty(width_out, width_in, *kernel))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T2 C2 H2 W2"]:
        """Convolve; T2 = T / temporal_stride, height and width shrink by spatial_stride."""
        k_t, k_h, k_w = self.kernel
        padding = (k_h // 2, k_w // 2)
        if k_t == 1:
            x = x[:, :: self.temporal_stride]
        frames = x.shape[:2]
        x = x.flatten(0, 1)
        if self.spatial_stride > 1:
            # Right and bottom only, as in the release: an even side halves exactly.
            x = F.pad(x, (0, k_w - 2, 0, k_h - 2))
            padding = (0, 0)
        if k_t > 1:
            # 3-D as 2-D: the taps in time of one output frame are put side by side in the channels.
            weight = self.weight.transpose(1, 2).flatten(1, 2)
            inputs = _autocast(x.unflatten(0, frames), weight, self.bias)
            y: Tensor = _TemporalConv.apply(  # type: ignore[no-untyped-call]
                *inputs, k_t, self.temporal_stride, self.spatial_stride, padding
            )
            return y
        y = F.conv2d(x, self.weight[:, :, 0], self.bias, stride=self.spatial_stride, padding=padding)
        return y.unflatten(0, frames)


class FactorizedConv(nn.Sequential):
    """A spatial 3 x 3 convolution followed by a causal temporal one of length 3."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(CausalConv3d(width_in, width_out, (1, 3, 3)), CausalConv3d(width_out, width_out, (3, 1, 1)))


class _NarrowNorm(torch.autograd.Function):
    """Group norm with one group (and SiLU) of a bfloat16 input: computed in float32, only the input is kept.

    Autocast would keep two float32 copies, of the norm's input and of SiLU's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "N C H W"], weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> Float[Tensor, "N C H W"]:
        """Normalize each image of the batch, and round the result to the input's precision."""
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (eps, silu)
        y = F.group_norm(x.float(), 1, weight.float(), bias.float(), eps)
        return (F.silu(y) if silu else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "N C H W"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weight and bias."""
        x, weight, bias = ctx.saved_tensors
        eps, silu = ctx.options
        batch, channels, height, width = x.shape
        size = (batch, channels, height * width, 1)
        # These functions read memory as it lies: without `contiguous` a channels-last tensor gives wrong gradients.
        wide = x.float().contiguous()
        grad = grad.float().contiguous()
        y, mean, rstd = torch.native_group_norm(wide, weight.float(), bias.float(), *size, eps)
        if silu:
            grad = torch.ops.aten.silu_backward(grad, y)
        which = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_group_norm_backward(grad, wide, mean, rstd, weight.float(), *size, which)
        narrow = (g if g is None else g.to(like.dtype) for g, like in zip(gradients, (x, weight, bias), strict=True))
        return (*narrow, None, None)


class FrameNorm(nn.Module):
    """Group norm with one group, separately for every frame: statistics never cross time. Optionally with SiLU.

    Statistics are in float32 or wider; the output has the input's precision, also under autocast.
    """

    def __init__(self, width: int, *, silu: bool = False) -> None:
        super().__init__()
        self.silu = silu
        self.norm = nn.GroupNorm(1, width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C H W"]:
        """Normalize each frame over channels and space."""
        frames = x.shape[:2]
        if x.dtype in (torch.bfloat16, torch.float16):
            y: Tensor = _NarrowNorm.apply(  # type: ignore[no-untyped-call]
                x.flatten(0, 1), self.norm.weight, self.norm.bias, self.norm.eps, self.silu
            )
        else:
            y = self.norm(x.flatten(0, 1))
            y = F.silu(y) if self.silu else y
        return y.unflatten(0, frames)


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
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys and values as one product
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T C h w"]) -> Float[Tensor, "B T C h w"]:
        """Attend, and add the result to `x`."""
        batch, _, _, height, width = x.shape
        if self.axis == "space":
            tokens = rearrange(self.norm(x), "b t c h w -> (b t) (h w) c")
        else:
            tokens = rearrange(self.norm(x), "b t c h w -> (b h w) t c")
        # One head; `is_causal` lets a frame attend to itself and the past only.
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        mixed = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.axis == "time").squeeze(1))
        if self.axis == "space":
            return x + rearrange(mixed, "(b t) (h w) c -> b t c h w", b=batch, h=height, w=width)
        return x + rearrange(mixed, "(b h w) t c -> b t c h w", b=batch, h=height, w=width)


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
            padded = torch.cat([x[:, :1], x], dim=1)
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
        # Frame 0 is a step of its own: it is not doubled, or the video would grow to 2 + 2m frames.
        if self.time:
            x = x.repeat_interleave(2, dim=1)[:, 1:]
        if self.space:
            x = F.interpolate(x.flatten(0, 1), scale_factor=2.0, mode="nearest").unflatten(0, x.shape[:2])
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


BLOCK_CLASSES = (ResidualBlock, FrameAttention, Downsample, Upsample)
"""The classes of the trunk's blocks: the units that are compiled, recomputed, or sharded over ranks one by one."""


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """Return the blocks inside an encoder, a decoder or a whole dLDM, in the order in which they were built."""
    return [module for module in trunk.modules() if isinstance(module, BLOCK_CLASSES)]


def _run(body: nn.Sequential, x: Tensor, *, checkpointing: bool) -> Tensor:
    """Run the blocks in order; with `checkpointing` only their inputs are kept for the backward pass."""
    for block in body:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else block(x)
    return x


def compile_in_place(blocks: Iterable[nn.Module]) -> None:
    """Compile each block by itself, without graph breaks; names of parameters stay, the first step takes minutes."""
    # All blocks of a class share one cache, with an entry for each width, grid and mode; torch's limit of 8 entries is
    # for functions that are compiled over and over by mistake.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    for block in blocks:
        # Shapes are constants of the compiled code: sizes that vary would make slower code, and clips have one size.
        block.compile(fullgraph=True, dynamic=False)


class CausalEncoder(nn.Module):
    """The encoder: clip -> features of the last level's width, one step for frame 0 and one per `stride` frames."""

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
        # The middle attends at the coarsest resolution, whether the levels do or not.
        self.body = nn.Sequential(*body, *middle, FrameNorm(width, silu=True))

    def compile_blocks(self) -> None:
        """Compile the blocks in place, the last norm included."""
        compile_in_place(self.body)

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K C h w"]:
        """Return features of pixels in [-1, 1]; T = 1 + a multiple of the stride."""
        patches = self.patcher(x)
        if self.stem.kernel == (1, 1, 1):
            # As a matrix product, before the wide tensor is transposed: faster on a CPU.
            h = rearrange(F.linear(patches, self.stem.weight.flatten(1), self.stem.bias), "b k h w c -> b k c h w")
        else:
            h = self.stem(rearrange(patches, "b k h w c -> b k c h w"))
        return _run(self.body, h, checkpointing=self.checkpointing)


class CausalDecoder(nn.Module):
    """The decoder: features -> clip, the mirror of `CausalEncoder`'s levels. `CodeDecoder` adds the codes before it."""

    checkpointing = False

    def __init__(self, stem: StemConfig, levels: Sequence[LevelConfig]) -> None:
        super().__init__()
        self.patcher = Patcher(stem)
        width = levels[-1].width
        body: list[nn.Module] = []
        for level in reversed(levels):
            # The encoder down-samples after a level's blocks, so the decoder up-samples before them.
            if level.downsample_time or level.downsample_space:
                body.append(Upsample(width, level.width, time=level.downsample_time, space=level.downsample_space))
                width = level.width
            for _ in range(level.blocks):
                body.append(ResidualBlock(width, level.width))
                width = level.width
                if level.attention:
                    body += [FrameAttention(width, axis="space"), FrameAttention(width, axis="time")]
        self.body = nn.Sequential(*body, FrameNorm(width, silu=True))
        self.head = CausalConv3d(width, self.patcher.channels, (1, stem.spatial_kernel_size, stem.spatial_kernel_size))

    def compile_blocks(self) -> None:
        """Compile the blocks in place, the last norm included."""
        compile_in_place(self.body)

    def features(self, h: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B K2 C2 h2 w2"]:
        """Return the last features before pixels, on the grid of patches; K2 - 1 steps of patches after frame 0."""
        return _run(self.body, h, checkpointing=self.checkpointing)

    def pixels(self, features: Float[Tensor, "B K2 C2 h2 w2"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels, trained toward [-1, 1] and not clamped."""
        if self.head.kernel == (1, 1, 1):
            features = rearrange(features, "b k c h w -> b k h w c")
            return self.patcher.inverse(F.linear(features, self.head.weight.flatten(1), self.head.bias))
        return self.patcher.inverse(rearrange(self.head(features), "b k c h w -> b k h w c"))

    def forward(self, h: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Return the pixels of the decoded clip."""
        return self.pixels(self.features(h))
