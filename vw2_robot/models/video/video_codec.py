"""The codecs of the video diffusion model, pixels <-> latents: a fixed DCT codec and the pretrained VAE.

Place in the flow: between the clip and `vdm.py`. `DCTCodec` is the parameter-free default: blocks of s x p x p pixels
keep their lowest frequencies. It is exactly causal per latent step, invertible up to its band limit (37 to 39 dB on
smooth clips with p = 4), and needs no download. `WanCodec` wraps diffusers' `AutoencoderKLWan`, the VAE that
Cosmos-Predict2 was trained with; it is always frozen.

Layout: pixels are [B, T, 3, H, W] in [-1, 1]; latents are diffusers' [B, C, K, h, w], where latent frame 0 is frame 0
alone and latent frame k holds frames s(k-1)+1 .. sk, the same convention as the dLDM's steps.
"""

# B batch · T frames · K latent frames · C latent channels · s temporal stride · p spatial block · n kept frequencies
from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..precision import at_least_float32
from .config import CodecConfig
from .cosmos import build_vae
from .cosmos_folder import load_weights


def dct_basis(size: int, keep: int) -> Float[Tensor, "keep size"]:
    """Return the first rows of the orthonormal DCT-II."""
    # Computed in float64: rounding to float32 is then the only error.
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(keep, dtype=torch.float64)[:, None] * place) * math.sqrt(2.0 / size)
    rows[0] /= math.sqrt(2.0)
    return rows.float()


class DCTCodec(nn.Module):
    """A fixed orthonormal transform; `scale` (one number per channel, saved) brings latents to unit size."""

    basis: Tensor
    scale: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        # A separable transform: one matrix for time, height and width together.
        space = dct_basis(config.block, config.keep)
        basis = torch.kron(torch.kron(dct_basis(config.stride, config.keep), space), space)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("scale", torch.ones(config.channels))

    @torch.no_grad()
    def measure(self, x: Float[Tensor, "B T 3 H W"]) -> None:
        """Set `scale` to the root mean square of each channel over the clips `x`, never below 1 % of the largest."""
        # The floor keeps channels that are nearly constant from being amplified to noise.
        self.scale.fill_(1.0)
        size = self.encode(x).square().mean(dim=(0, 2, 3, 4)).sqrt()
        self.scale.copy_(size.clamp(min=float(size.max()) * 0.01))

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C K h w"]:
        """Return latents. T must be 1 + a multiple of the stride; frame 0 is repeated, so that it fills a block."""
        s = self.config.stride
        p = self.config.block
        x = torch.cat([x[:, :1].expand(-1, s - 1, -1, -1, -1), x], dim=1)
        blocks = rearrange(x, "b (k s) c (h p) (w q) -> b k h w c (s p q)", s=s, p=p, q=p)
        latents = rearrange(blocks @ self.basis.T, "b k h w c n -> b (c n) k h w")
        return latents / self.scale[:, None, None, None]

    def decode(self, latents: Float[Tensor, "B C K h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels: the transpose of `encode`, without the copies of the first frame."""
        s = self.config.stride
        p = self.config.block
        blocks = rearrange(latents * self.scale[:, None, None, None], "b (c n) k h w -> b k h w c n", c=3) @ self.basis
        x = rearrange(blocks, "b k h w c (s p q) -> b (k s) c (h p) (w q)", s=s, p=p, q=p)
        return x[:, s - 1 :]


class WanCodec(nn.Module):
    """The pretrained VAE, frozen: latents are the mean of the posterior, normalized by the VAE's mean and deviation.

    One clip at a time and without gradients, so that memory does not grow with the batch; inside a clip diffusers'
    VAE processes four frames at a time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        wan = config.wan
        vae = build_vae(wan.base_dim, dim_mult=wan.dim_mult, res_blocks=wan.res_blocks)
        self.vae = nn.Module.to(vae, dtype).eval().requires_grad_(False)  # the `to` of diffusers warns without cause
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean))
        self.register_buffer("std", torch.tensor(vae.config.latents_std))

    def load_folder(self, path: str) -> None:
        """Load weights, mean and deviation of `path`/vae.

        Raises:
            InputError: there is no such folder, or it holds a VAE of another size.
        """
        facts = load_weights(self.vae, path, "vae", section="codec.wan")
        self.mean.copy_(torch.tensor(facts["latents_mean"]))
        self.std.copy_(torch.tensor(facts["latents_std"]))

    def measure(self, x: Float[Tensor, "B T 3 H W"]) -> None:
        """Do nothing: mean and deviation of the latents came with the weights."""

    def train(self, mode: bool = True) -> WanCodec:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C K h w"]:
        """Return latents. T must be 1 + a multiple of 4; K = 1 + (T - 1) / 4."""
        dtype = next(self.vae.parameters()).dtype
        with torch.autocast(x.device.type, enabled=False):
            clips = rearrange(x, "b t c h w -> b c t h w").to(dtype).split(1)
            latents = torch.cat([self.vae.encode(clip).latent_dist.mode() for clip in clips])
            latents = at_least_float32(latents)
        # Unit size per channel, as the transformer was trained.
        return (latents - self.mean[:, None, None, None]) / self.std[:, None, None, None]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C K h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels in [-1, 1] (clamped by the VAE)."""
        dtype = next(self.vae.parameters()).dtype
        with torch.autocast(latents.device.type, enabled=False):
            unscaled = (at_least_float32(latents) * self.std[:, None, None, None] + self.mean[:, None, None, None]).to(
                dtype
            )
            x = torch.cat([self.vae.decode(clip, return_dict=False)[0] for clip in unscaled.split(1)])
        return rearrange(at_least_float32(x), "b c t h w -> b t c h w")


VideoCodec = DCTCodec | WanCodec


def build_codec(config: CodecConfig) -> VideoCodec:
    """Build the codec; Wan's weights are random until `load_folder` or a checkpoint fills them."""
    return WanCodec(config) if config.kind == "wan" else DCTCodec(config)
