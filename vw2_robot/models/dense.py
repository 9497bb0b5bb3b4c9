"""Linear layers of float32 on a CPU as convolutions of size 1, which oneDNN computes instead of MKL.

Torch gives matrix products in float32 to MKL, and convolutions to oneDNN. On AMD's processors MKL uses half of the
vector width: 109 GFLOP/s of a core where oneDNN reaches 241 (docs/performance.md). Anywhere else `F.linear` runs.
"""

# M tokens, over all leading axes · C, D channels
from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEWEST_TOKENS = 256
"""below, the call of the convolution costs more than it saves"""
BATCHES = range(16, 129)
"""a convolution of size 1 goes to oneDNN from 16 images on, also with one thread; so tokens are cut into images"""


def dense(x: Float[Tensor, "*batch C"], weight: Float[Tensor, "D C"], bias: Tensor | None) -> Float[Tensor, "*batch D"]:
    """Return `F.linear`, on a CPU in float32 by way of oneDNN.

    Args:
        x: tokens with C channels.
        weight: of `nn.Linear`.
        bias: [D], or none.
    """
    tokens = x.numel() // x.shape[-1]
    images = next((n for n in BATCHES if tokens % n == 0), 0) if tokens >= FEWEST_TOKENS else 0
    if not images or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    # Channels last: one row of memory is one token, so neither side is copied.
    y = F.conv2d(x.reshape(images, -1, 1, x.shape[-1]).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Dense(nn.Linear):
    """`nn.Linear`, computed by `dense`."""

    def forward(self, input: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch D"]:
        """Return the product of the last axis with the weights, plus the bias."""
        return dense(input, self.weight, self.bias)
