"""Attention of the decoder's frames to the codes of their latent steps.

Place in the flow: in `code_decoder.py` before the levels, and in `causal_video.py` after the residual blocks of the
levels that `dldm.code_attention` names. Frame 0 attends to no code. Steps are folded into the batch, so that a mask has
a row for a step and not for each of its pixels: at the paper's size that is 23 x 92 instead of 143 520 x 92.
"""

# B batch · K = 1 + M·r feature steps, r of them to a latent step · M latent steps · N codes per step
# S = M·N codes · Q tokens of a step · C feature width · Z width of the codes · h, w feature grid
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from .config import DLDMConfig
from .frame_norm import FrameNorm
from .qformer import CrossAttention


class Codes(NamedTuple):
    """The codes as keys and values, float [B, S, Z], and which of them each latent step sees, bool [M, S]."""

    keys: Tensor
    seen: Tensor


def visible_codes(latent_steps: int, queries: int, *, visibility: str, device: torch.device) -> Tensor:
    """Return bool [M, M·N]: True where step m may attend to the code of step j and slot n.

    Args:
        latent_steps: M.
        queries: N, slots per step.
        visibility: causal: j <= m; current: j == m.
        device: of the mask.
    """
    step = torch.arange(latent_steps, device=device)
    mask = step[:, None] >= step[None, :] if visibility == "causal" else step[:, None] == step[None, :]
    return mask.repeat_interleave(queries, dim=1)


def attend(cross: CrossAttention, tokens: Float[Tensor, "B M Q C"], codes: Codes) -> Float[Tensor, "B M Q C"]:
    """Return what the tokens of each latent step read from the codes that it sees.

    Args:
        cross: its weights.
        tokens: of all steps.
        codes: all of them; every step has those that `codes.seen` gives it.
    """
    batch, steps = tokens.shape[:2]
    q = rearrange(cross.q(tokens), "b m q (a d) -> (b m) a q d", a=cross.heads)
    k, v = (
        repeat(layer(codes.keys), "b s (a d) -> (b m) a s d", a=cross.heads, m=steps) for layer in (cross.k, cross.v)
    )
    mask = repeat(codes.seen, "m s -> (b m) 1 1 s", b=batch)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out: Tensor = cross.out(rearrange(mixed, "(b m) a q d -> b m q (a d)", b=batch))
    return out


class CodeAttention(nn.Module):
    """A block of the decoder's levels that adds what each frame reads from the codes.

    Args:
        width: C, of the features.
        context: Z, of the codes.
        heads: of the attention.
        by_frame: normalize each frame as a whole, as released, and not each of its places.
    """

    def __init__(self, width: int, *, context: int, heads: int, by_frame: bool = False) -> None:
        super().__init__()
        self.norm = FrameNorm(width) if by_frame else nn.LayerNorm(width)
        self.cross = CrossAttention(width, inner=width, heads=heads, context=context)

    def forward(self, x: Float[Tensor, "B K C h w"], codes: Codes) -> Float[Tensor, "B K C h w"]:
        """Return the features with what they read; those of frame 0 as they are."""
        rows = rearrange(x, "b k c h w -> b k h w c")  # as it lies in memory
        frames = rows[:, 1:]
        if isinstance(self.norm, FrameNorm):
            normed = rearrange(self.norm(x[:, 1:]), "b k c h w -> b k h w c")
        else:
            normed = self.norm(frames)
        tokens = rearrange(normed, "b (m r) h w c -> b m (r h w) c", m=len(codes.seen))
        read = attend(self.cross, tokens, codes).reshape(frames.shape)
        rows = torch.cat([rows[:, :1], frames + read.to(x.dtype)], dim=1)
        return rearrange(rows, "b k h w c -> b k c h w")


def code_attention(config: DLDMConfig, width: int, *, context: int) -> CodeAttention:
    """Return the block of a decoder.

    Args:
        config: of the dLDM.
        width: C, of the features.
        context: Z, of the codes.
    """
    released = config.released_decoder
    return CodeAttention(width, context=context, heads=1 if released else config.qformer.heads, by_frame=released)
