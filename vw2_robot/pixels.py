"""The one place where images change between uint8 [0, 255] HWC (disk, simulators) and float [-1, 1] CHW (models)."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_model_range(pixels: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch 3 H W"]:
    """uint8 [0, 255], channels last -> float32 [-1, 1], channels first; on the device where the pixels are."""
    return torch.movedim(pixels.to(torch.float32) / 127.5 - 1.0, -1, -3)


def to_pixels(x: Float[Tensor, "*batch 3 H W"]) -> UInt8[Tensor, "*batch H W 3"]:
    """The inverse, clamped and rounded."""
    return torch.movedim(((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8), -3, -1)


def shift_randomly(x: Float[Tensor, "B 3 H W"], *, most: int, noise: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Translate every image by up to `most` pixels in each direction, repeating the edge; one draw per image."""
    if most == 0:
        return x
    batch, _, height, width = x.shape
    offset = torch.randint(-most, most + 1, (batch, 2), generator=noise).to(x.device)
    rows = (torch.arange(height, device=x.device) + offset[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + offset[:, 1:]).clamp(0, width - 1)
    picked = torch.gather(x, 2, rows[:, None, :, None].expand(-1, 3, -1, width))
    return torch.gather(picked, 3, columns[:, None, None, :].expand(-1, 3, height, -1))
