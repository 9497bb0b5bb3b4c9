"""Pixels <-> latents for the video diffusion model.

Place in the flow: between the clip and `vdm.py`. `DCTCodec` is the parameter-free default: blocks of s x p x p pixels
keep their lowest frequencies. It is exactly causal per latent step, invertible up to its band limit (37 to 39 dB on
smooth clips with p = 4), and runs everywhere. Method specification section 1.12. Not learned, and no substitute for a
video VAE at high resolution.

Layout: pixels are [B, T, 3, H, W] in [-1, 1]; latents are diffusers' [B, C, K, h, w], where latent frame 0 is frame 0
alone and latent frame k holds frames s(k-1)+1 .. sk, the same convention as the dLDM's steps.
"""

# B batch · T frames · K latent frames · C latent channels · s temporal stride · p spatial block · n kept frequencies
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class DCTCodecConfig:
    """Block size and how many of the lowest frequencies are kept along each axis."""

    stride: int = 4
    block: int = 4
    keep: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= min(self.stride, self.block):
            raise ValueError(
                f"codec.keep must lie in 1 .. min(stride, block) = {min(self.stride, self.block)}, found {self.keep}"
            )

    @property
    def channels(self) -> int:
        """C, latent channels: three colours times keep^3 frequencies."""
        return 3 * self.keep**3


def dct_basis(size: int, keep: int) -> Float[Tensor, "keep size"]:
    """The first rows of the orthonormal DCT-II."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(keep, dtype=torch.float64)[:, None] * place) * math.sqrt(2.0 / size)
    rows[0] /= math.sqrt(2.0)
    return rows.float()


class DCTCodec(nn.Module):
    """Fixed orthonormal transform; `scale` (one number per channel, saved) brings latents to unit size."""

    basis_t: Tensor
    basis_s: Tensor
    scale: Tensor

    def __init__(self, config: DCTCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("basis_t", dct_basis(config.stride, config.keep), persistent=False)
        self.register_buffer("basis_s", dct_basis(config.block, config.keep), persistent=False)
        self.register_buffer("scale", torch.ones(config.channels))

    @torch.no_grad()
    def measure(self, x: Float[Tensor, "B T 3 H W"]) -> None:
        """Set `scale` to the root mean square of each channel over the clips `x`, never below 1 % of the largest."""
        self.scale.fill_(1.0)
        size = self.encode(x).square().mean(dim=(0, 2, 3, 4)).sqrt()
        self.scale.copy_(size.clamp(min=float(size.max()) * 0.01))

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C K h w"]:
        """T must be 1 + a multiple of the stride; the first frame is repeated so that it fills a block alone."""
        s, p = self.config.stride, self.config.block
        x = torch.cat([x[:, :1].expand(-1, s - 1, -1, -1, -1), x], dim=1)
        blocks = rearrange(x, "b (k s) c (h p) (w q) -> b k h w c s p q", s=s, p=p, q=p)
        for basis in (self.basis_s, self.basis_s, self.basis_t):  # last axis first; the result moves to the front
            blocks = torch.movedim(blocks @ basis.T, -1, 5)
        latents = rearrange(blocks, "b k h w c i j l -> b (c i j l) k h w")
        return latents / self.scale[:, None, None, None]

    def decode(self, latents: Float[Tensor, "B C K h w"]) -> Float[Tensor, "B T 3 H W"]:
        """The transpose of `encode`; the copies of the first frame are dropped."""
        n = self.config.keep
        blocks = rearrange(
            latents * self.scale[:, None, None, None], "b (c i j l) k h w -> b k h w c i j l", c=3, i=n, j=n, l=n
        )
        for basis in (self.basis_t, self.basis_s, self.basis_s):
            blocks = torch.movedim(blocks, 5, -1) @ basis
        x = rearrange(blocks, "b k h w c s p q -> b (k s) c (h p) (w q)")
        return x[:, self.config.stride - 1 :]
