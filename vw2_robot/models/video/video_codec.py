"""The codecs of the video diffusion model, pixels <-> latents: a fixed DCT codec and the pretrained VAE.

Place in the flow: between the clip and `vdm.py`. `DCTCodec` is the parameter-free default: blocks of s x p x p pixels
keep their lowest frequencies. It is exactly causal per latent step, invertible up to its band limit (37 to 39 dB on
smooth clips with p = 4), and needs no download. `WanCodec` wraps diffusers' `AutoencoderKLWan`, the VAE that
Wan and Cosmos-Predict2 were trained with; it is always frozen.

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
from .cosmos_folder import load_weights
from .wan import build_vae


def dct_basis(size: int, keep: int) -> Float[Tensor, "keep size"]:
    """Return the first rows of the orthonormal DCT-II."""
    # Computed in float64: rounding to float32 is then the only error.
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(keep, dtype=torch.float64)[:, None] * place) * math.sqrt(2.0 / size)
    rows[0] /= math.sqrt(2.0)
    return rows.float()


def dct_latents(x: Float[Tensor, "B T 3 H W"], basis: Tensor, *, stride: int, block: int) -> Float[Tensor, "B C K h w"]:
    """Return the kept frequencies of all blocks; frame 0 is repeated, so that it fills a block.

    Args:
        x: pixels; T must be 1 + a multiple of the stride.
        basis: one row per kept frequency, over the pixels of a block.
        stride: s, frames of a block.
        block: p, side of a block in pixels.
    """
    x = torch.cat([x[:, :1].expand(-1, stride - 1, -1, -1, -1), x], dim=1)
    blocks = rearrange(x, "b (k s) c (h p) (w q) -> b k h w c (s p q)", s=stride, p=block, q=block)
    return rearrange(blocks @ basis.T, "b k h w c n -> b (c n) k h w")


def dct_pixels(latents: Float[Tensor, "B C K h w"], basis: Tensor, *, stride: int, block: int) -> Tensor:
    """Return pixels [B, T, 3, H, W]: the transpose of `dct_latents`, without the copies of the first frame.

    Args:
        latents: the kept frequencies of all blocks.
        basis: one row per kept frequency, over the pixels of a block.
        stride: s, frames of a block.
        block: p, side of a block in pixels.
    """
    blocks = rearrange(latents, "b (c n) k h w -> b k h w c n", c=3) @ basis
    x = rearrange(blocks, "b k h w c (s p q) -> b (k s) c (h p) (w q)", s=stride, p=block, q=block)
    return x[:, stride - 1 :]


def block_basis(config: CodecConfig) -> Tensor:
    """Return the separable transform of a block as one matrix: time, height and width together."""
    space = dct_basis(config.block, config.keep)
    return torch.kron(torch.kron(dct_basis(config.stride, config.keep), space), space)


class DCTCodec(nn.Module):
    """A fixed orthonormal transform; `scale` (saved) brings the change of a clip to unit size.

    All channels have one scale. Divided by its own size, each of them would count as much as any other: the channels of
    the first temporal frequency, almost empty, would then hold nine tenths of what the video model is trained on, and
    the mean color of a block, where an arm went, one percent (docs/lab_log.md). The buffer has a number for each
    channel, since codecs of earlier releases have different ones.
    """

    basis: Tensor
    scale: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("basis", block_basis(config), persistent=False)
        self.register_buffer("scale", torch.ones(config.channels))

    @torch.no_grad()
    def measure(self, x: Float[Tensor, "B T 3 H W"]) -> None:
        """Set `scale` to the root mean square of the change from frame 0, over all channels and the clips `x`."""
        self.scale.fill_(1.0)
        latents = self.encode(x)
        change = (latents[:, :, 1:] - latents[:, :, :1]).square().mean().sqrt()
        # A data set of still images has no change; the scale then stays 1.
        if change > 0:
            self.scale.fill_(change)

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C K h w"]:
        """Return latents. T must be 1 + a multiple of the stride; frame 0 is repeated, so that it fills a block."""
        latents = dct_latents(x, self.basis, stride=self.config.stride, block=self.config.block)
        return latents / self.scale[:, None, None, None]

    def decode(self, latents: Float[Tensor, "B C K h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Return pixels: the transpose of `encode`, without the copies of the first frame."""
        unscaled = latents * self.scale[:, None, None, None]
        return dct_pixels(unscaled, self.basis, stride=self.config.stride, block=self.config.block)


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
        vae = build_vae(config.wan)
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
