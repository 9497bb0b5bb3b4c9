"""Finite scalar quantization (FSQ): a few bounded numbers, each rounded to a few values, make one code.

Place in the flow: dLDM queries -> FSQ -> latent action tokens. Mentzer et al., "Finite Scalar Quantization" (2023). It
has no codebook, no commitment loss and no state; with levels [8, 5, 5, 5] there are 1000 codes. Not a learned vector
quantizer.

Always computed in float32 or more, also under autocast: index arithmetic in bfloat16 is exact for small level sets only
by luck. Never feed a *code* to the quantizer again: `bound` is not the identity on codes, and about half of them would
change.
"""

# B batch · M latent steps · N codes per step · L = len(levels) · V = product of levels
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..precision import at_least_float32


class FSQ(nn.Module):
    """The quantizer and its exact inverse, without parameters.

    Args:
        levels: values per dimension, each at least 2; their product is V.
        eps: widens the bounded interval a little, so that the outermost levels are reached (paper: 1e-3).

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
        # An index is a number in a mixed base: dimension 0 varies fastest.
        basis = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        half = [(level - 1) * (1 + eps) / 2 for level in self.levels]
        offset = [0.0 if level % 2 else 0.5 for level in self.levels]
        # Even level counts have no level at 0: half a level is subtracted, and `shift` keeps bound(0) = 0.
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
        """Return each number squashed smoothly into the interval whose integers are its levels."""
        return torch.tanh(at_least_float32(z) + self.shift) * self.radius - self.offset

    def forward(self, z: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch L"]:
        """Return codes in [-1, 1]; the gradient is that of `bound`, straight through the rounding."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z)
            # Straight-through estimator: the value of the rounding, the gradient of the identity.
            rounded = bounded + (bounded.round() - bounded).detach()
            return rounded / self.half_width

    def indices(self, codes: Float[Tensor, "*batch L"]) -> Int[Tensor, "*batch"]:
        """Return the index in [0, V) of each code; the inverse of `codes_of`."""
        level_numbers = (at_least_float32(codes.detach()) * self.half_width).round().long() + self.half_width
        return (level_numbers * self.basis).sum(-1)

    def codes_of(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch L"]:
        """Return the code of each index in [0, V); the inverse of `indices`."""
        return (self.fsq_dims_of(indices) - self.half_width) / self.half_width

    def fsq_dims_of(self, indices: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch L"]:
        """Return the level number of each dimension, 0 .. levels[i] - 1."""
        return torch.div(indices.unsqueeze(-1), self.basis, rounding_mode="floor") % self.levels_L

    def pre_images_of(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch L"]:
        """Return a real vector that quantizes to each index: the analytic inverse, so every index can be reached."""
        rounded = self.codes_of(indices) * self.half_width
        return torch.atanh((rounded + self.offset) / self.radius) - self.shift
