"""The norm of the dLDM's trunk: over channels and space of each frame, so that statistics never cross time.

Place in the flow: in every block of `causal_video.py`, and in the released attention to codes (`code_attention.py`). It
keeps its input alone for the backward pass and computes float32 again (docs/memory.md).
"""

# B batch · T frames · N images · C channels · H, W feature grid
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..precision import at_least_float32


def _normalized(x: Float[Tensor, "N C H W"], weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Return the images in float32 or wider and dense, their group norm with one group, its means and scales."""
    batch, channels, height, width = x.shape
    # The functions below read memory as it lies: channels-last or plain, on a GPU plain.
    strides = (channels * height * width, 1, width * channels, channels)
    is_last = x.device.type == "cpu" and x.stride() == strides
    wide = at_least_float32(x).contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    found = torch.native_group_norm(
        wide, weight.to(wide.dtype), bias.to(wide.dtype), batch, channels, height * width, 1, eps
    )
    return wide, *found


class _Norm(torch.autograd.Function):
    """Group norm with one group (and SiLU), in float32 or wider; of a narrow input nothing else is kept.

    Autocast would keep two float32 copies, of the norm's input and of SiLU's. And of a channels-last norm whose input
    needs no gradient torch's own backward pass crashes the process; here all gradients are computed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "N C H W"], weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> Float[Tensor, "N C H W"]:
        """Normalize each image of the batch, and round the result to the input's precision."""
        wide, y, mean, rstd = _normalized(x, weight, bias, eps)
        kept = (x,) if wide.dtype != x.dtype else (wide, y, mean, rstd)
        ctx.save_for_backward(weight, bias, *kept)
        ctx.options = (eps, silu)
        return (F.silu(y) if silu else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "N C H W"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weight and bias."""
        weight, bias, x, *rest = ctx.saved_tensors
        eps, silu = ctx.options
        wide, y, mean, rstd = (x, *rest) if rest else _normalized(x, weight, bias, eps)
        is_last = wide.stride(1) == 1 and wide.stride(3) != 1
        layout = torch.channels_last if is_last else torch.contiguous_format
        grad = at_least_float32(grad).contiguous(memory_format=layout)
        if silu:
            grad = torch.ops.aten.silu_backward(grad, y)
        batch, channels, height, width = x.shape
        size = (batch, channels, height * width, 1)
        weight_wide = weight.to(wide.dtype)
        gradients = torch.ops.aten.native_group_norm_backward(grad, wide, mean, rstd, weight_wide, *size, [True] * 3)
        narrow = (g.to(like.dtype) for g, like in zip(gradients, (x, weight, bias), strict=True))
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
        norm = self.norm
        y: Tensor = _Norm.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, 1), norm.weight, norm.bias, norm.eps, self.silu
        )
        return y.unflatten(0, x.shape[:2])
