"""Codes of a latent step that nothing learned: the change of its pixels, quantized as codes are.

Place in the flow: in the place of the encoder and its queries, with `dldm.fixed_codes=pixel_differences`; a control
that says what learned codes bring. The change from the last frame of a step to that of the next, at 16 x 16 pixels, is
projected on its principal components, as many as a step has numbers; borders between levels are quantiles, so that all
levels are equally frequent. Both are measured on training clips.
"""

# B batch · M latent steps, with M + 1 edges · N codes per step · D pixels · W = N * L components
# R rows (steps of some clips)
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DLDMConfig

SIDE = 16
"""of the shrunk images, pixels"""


class PixelDifferences(nn.Module):
    """Quantized principal components of the change of pixels.

    Args:
        config: of the dLDM: its queries and levels.
    """

    mean: Tensor
    directions: Tensor
    borders: Tensor
    basis: Tensor

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.queries = config.queries
        self.levels = config.fsq_levels
        pixels = 3 * SIDE**2
        components = config.queries * len(config.fsq_levels)
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("directions", torch.zeros(pixels, components))
        # A dimension with fewer levels has fewer borders; those that it does not have are never crossed.
        self.register_buffer("borders", torch.full((components, max(config.fsq_levels) - 1), torch.inf))
        basis = torch.tensor([1, *self.levels[:-1]]).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)

    def differences(self, edges: Float[Tensor, "B E 3 H W"]) -> Float[Tensor, "B M D"]:
        """Return the change of the shrunk frame from each edge to the next, in units of [-1, 1]."""
        small = F.adaptive_avg_pool2d(edges.flatten(0, 1).to(self.mean), SIDE).unflatten(0, edges.shape[:2])
        return (small[:, 1:] - small[:, :-1]).flatten(2)

    @torch.no_grad()
    def fit(self, differences: Float[Tensor, "R D"]) -> None:
        """Measure components and borders on the steps of some clips."""
        x = differences.double().cpu()
        mean = x.mean(0)
        directions = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors
        # Sorted upward, so the directions of the largest spread come last.
        directions = directions.flip(1)[:, : self.directions.shape[1]]
        self.mean.copy_(mean)
        self.directions.copy_(directions)
        components = (x - mean) @ directions
        for number, level in enumerate(self._levels_of_components()):
            shares = torch.arange(1, level, dtype=torch.float64) / level
            self.borders[number, : level - 1] = components[:, number].quantile(shares)

    def _levels_of_components(self) -> list[int]:
        # The first N components, which vary most, are the first dimension of each code.
        return [level for level in self.levels for _ in range(self.queries)]

    @torch.no_grad()
    def indices(self, edges: Float[Tensor, "B E 3 H W"]) -> Int[Tensor, "B M N"]:
        """Return the codes of the steps between frames in [-1, 1]."""
        with torch.autocast(edges.device.type, enabled=False):
            components = (self.differences(edges) - self.mean) @ self.directions
        level_numbers = (components[..., None] > self.borders).sum(-1)
        return (level_numbers.unflatten(-1, (len(self.levels), self.queries)) * self.basis[:, None]).sum(-2)
