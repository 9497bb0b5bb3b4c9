"""Finite scalar quantization: a few bounded numbers, each rounded to a few values, make one code.

Place in the flow: dLDM queries -> FSQ -> latent action tokens. Method specification section 1.4; Mentzer et al.,
"Finite Scalar Quantization" (2023). It has no codebook, no commitment loss and no state; with levels [8, 5, 5, 5] there
are 1000 codes. Not a learned vector quantizer.

Always computed in float32, also under autocast: index arithmetic in bfloat16 is exact for small level sets only by
luck. Never feed a *code* to the quantizer again: `bound` is not the identity on codes, only about half of them would
survive.
"""

# B batch · M latent steps · N codes per step · L = len(levels) · V = product of levels
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FSQ(nn.Module):
    """The quantizer and its exact inverse. Has no parameters; `levels` is its whole definition.

    Raises:
        ValueError: if there is no level, or one below 2.
    """

    basis: Tensor
    levels_L: Tensor
    half_width: Tensor
    radius: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, levels: Sequence[int], *, eps: float = 1e-3) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ levels must be a non-empty list of integers >= 2, found {list(levels)}")
        self.levels = tuple(int(level) for level in levels)
        self.vocabulary = math.prod(self.levels)
        basis = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        half = [(level - 1) * (1 + eps) / 2 for level in self.levels]
        offset = [0.0 if level % 2 else 0.5 for level in self.levels]
        shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
        for name, values, dtype in (
            ("basis", basis, torch.int64),
            ("levels_L", self.levels, torch.int64),
            ("half_width", [level // 2 for level in self.levels], torch.int64),
            ("radius", half, torch.float32),
            ("offset", offset, torch.float32),
            ("shift", shift, torch.float32),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def bound(self, z: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch L"]:
        """Squash each number smoothly into the interval whose integers are its levels."""
        return torch.tanh(z.float() + self.shift) * self.radius - self.offset

    def forward(self, z: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch L"]:
        """Quantize to codes in [-1, 1]; the gradient is that of `bound`, straight through the rounding."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z)
            rounded = bounded + (bounded.round() - bounded).detach()
            return rounded / self.half_width

    def indices(self, codes: Float[Tensor, "*batch L"]) -> Int[Tensor, "*batch"]:
        """Codes -> index in [0, V). Inverse of `codes_of`."""
        digits = (codes.detach().float() * self.half_width).round().long() + self.half_width
        return (digits * self.basis).sum(-1)

    def codes_of(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch L"]:
        """Index in [0, V) -> code. Inverse of `indices`."""
        return (self.fsq_dims_of(indices) - self.half_width) / self.half_width

    def fsq_dims_of(self, indices: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch L"]:
        """Index -> the level number of each dimension, 0 .. levels[i] - 1."""
        return torch.div(indices.unsqueeze(-1), self.basis, rounding_mode="floor") % self.levels_L

    def pre_images_of(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch L"]:
        """A real vector that quantizes to each index (the analytic inverse; shows that every index is reachable)."""
        rounded = self.codes_of(indices) * self.half_width
        return torch.atanh((rounded + self.offset) / self.radius) - self.shift
