"""The warp output of a small video model: a flow field from its last tokens moves frame 0, in place of a still image.

Place in the flow: with `vdm.warp`, between the transformer of `vdm.py` and `noise_levels.velocity_of_change`. Our
addition, an aid for models that are trained from scratch: a code then has to say where the arm goes, and not how every
pixel looks there (docs/dldm.md has its effect). Pretrained weights have no such output.
"""

# B batch · K latent frames · C latent channels · h, w latent grid · Q = K * h/2 * w/2 tokens · W width of a token
# s frames of a latent frame
from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..warping import FLOW_SCALE, warped_frames
from .config import CodecConfig
from .video_codec import block_basis, dct_latents, dct_pixels


class LatentWarp(nn.Module):
    """A linear layer from tokens to flow, and latents of frame 0 moved by it; it starts at the identity.

    Args:
        width: W, of a token.
        codec: of the latents, `kind=dct`. Its scale is one number for all channels, which cancels here.
    """

    basis: Tensor

    def __init__(self, width: int, codec: CodecConfig) -> None:
        super().__init__()
        self.codec = codec
        self.register_buffer("basis", block_basis(codec), persistent=False)
        self.flow = nn.Linear(width, 2 * codec.stride)
        for parameter in self.flow.parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Float[Tensor, "B Q W"], first: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C K h w"]:
        """Return latents of the clip that only moves: latent frame 0 is `first`."""
        stride, block = self.codec.stride, self.codec.block
        grid = rearrange(tokens, "b (k y x) w -> b k y x w", y=first.shape[-2] // 2, x=first.shape[-1] // 2)
        flow = rearrange(self.flow(grid[:, 1:]) * FLOW_SCALE, "b k y x (s two) -> b (k s) two y x", s=stride)
        pixels = dct_pixels(first[:, :, None], self.basis, stride=stride, block=block)
        moved = warped_frames(flow, pixels[:, 0])
        return dct_latents(torch.cat([pixels.to(moved.dtype), moved], 1), self.basis, stride=stride, block=block)
