"""The precision of losses, norms and quantizers: float32 under autocast, and float64 in runs that are compared."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32; one in float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
