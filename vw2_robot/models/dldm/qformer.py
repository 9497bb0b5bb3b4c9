"""The Q-Former of the dLDM: learnable queries that read the change out of each step's features.

Place in the flow: causal encoder -> Q-Former -> quantizer (`dldm.py`). All steps are computed at once; the same queries
serve every step, and a step attends to no feature after its own.
"""

# B batch · T frames · K = 1 + ceil((T-1)/s) feature steps · M = K-1 latent steps · N codes per step · L code dimensions
# C feature width · Z width of keys and values · h, w feature grid · s temporal stride
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .config import DLDMConfig


class CrossAttention(nn.Module):
    """Multi-head attention of one token set on another; the inner width may differ from the token width.

    Args:
        width: C, of the queries and of what is returned.
        inner: of queries, keys and values inside, over all heads.
        heads: H.
        context: of keys and values; None: C.
    """

    def __init__(self, width: int, *, inner: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, inner)
        self.k = nn.Linear(context or width, inner)
        self.v = nn.Linear(context or width, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self,
        queries: Float[Tensor, "B Q C"],
        keys: Float[Tensor, "B S Z"],
        values: Float[Tensor, "B S Z"],
        mask: Bool[Tensor, "*#B #Q S"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        """Return the attended values.

        Args:
            queries: Q tokens that attend.
            keys: S tokens that are compared with the queries.
            values: S tokens that are mixed.
            mask: True where attention is allowed; None: everywhere.
        """
        q, k, v = (
            rearrange(layer(x), "b n (a d) -> b a n d", a=self.heads)
            for layer, x in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rearrange(mixed, "b a n d -> b n (a d)"))
        return out


class QFormer(nn.Module):
    """N learnable queries that read the change out of each step's features, the same ones for every step."""

    frequencies: Tensor

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config.qformer
        width = config.levels[-1].width
        heads = config.qformer.heads
        self.queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
        # Random Fourier features of (row, column) in [0, 1]; saved, because the weights are trained around them.
        self.register_buffer("frequencies", torch.randn(2, width // 2))
        self.role = nn.Parameter(torch.zeros(2, width)) if config.qformer.role_embedding else None
        if self.role is not None:
            nn.init.normal_(self.role, std=0.02)
        self.gain: nn.Parameter | None = None
        if config.qformer.difference_values and config.qformer.context == "adjacent":
            # Differs from the release: values start as the difference of the two frames (method 1.3).
            self.gain = nn.Parameter(torch.tensor([-1.0, 1.0])[:, None].repeat(1, width))
        depth = config.qformer.depth
        self.cross = nn.ModuleList(CrossAttention(width, inner=width // 2, heads=heads) for _ in range(depth + 1))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.norm_cross = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.norm_mlp = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def position(self, height: int, width: int) -> Float[Tensor, "hw C"]:
        """Return the 2-D position code of a grid of that size."""
        frequencies = self.frequencies
        # From border to border in [0, 1], or from center to center in [-1, 1].
        centered = self.config.centered_positions
        axes = [
            torch.linspace(
                1 / side - 1 if centered else 0.0,
                1 - 1 / side if centered else 1.0,
                side,
                device=frequencies.device,
                dtype=frequencies.dtype,
            )
            for side in (height, width)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angle = 2 * math.pi * grid @ frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def _context(self, f: Float[Tensor, "B K C h w"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values [B M, S, C] that each step's queries attend to, and a mask where S holds more."""
        batch = f.shape[0]
        latent_steps = f.shape[1] - 1
        tokens = rearrange(f, "b k c h w -> b k (h w) c")
        position = self.position(*f.shape[-2:]).to(f.dtype)
        current = tokens[:, 1:]
        previous = tokens[:, :-1]
        zero = position.new_zeros(position.shape[-1])
        role_previous, role_current = (zero, zero) if self.role is None else (self.role[0], self.role[1])
        mask: Tensor | None = None
        if self.config.context == "current":
            values = current
            keys = current + position + role_current
        elif self.config.context == "adjacent":
            values = torch.cat([previous, current], dim=2)
            keys = values + torch.cat([position + role_previous, position + role_current])
        else:
            # All of f_0 .. f_k: every step gets the whole clip, and the mask hides what comes after it.
            everything = rearrange(tokens, "b k s c -> b 1 (k s) c")
            values = everything.expand(-1, latent_steps, -1, -1)
            frame = torch.arange(latent_steps + 1, device=f.device)
            here = frame[None, :] == frame[1:, None]
            role = torch.where(here[..., None], role_current, role_previous)  # [M, K, C]
            keys = values + rearrange(role[:, :, None] + position, "m k s c -> m (k s) c")
            seen = (frame[None, :] <= frame[1:, None]).repeat_interleave(position.shape[0], dim=1)
            mask = repeat(seen, "m s -> (b m) 1 1 s", b=batch)
        if self.config.value_pos:
            values = keys
        if self.gain is not None:
            values = values * self.gain.repeat_interleave(position.shape[0], dim=0)
        return keys.flatten(0, 1), values.flatten(0, 1), mask

    def forward(self, f: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B M N C"]:
        """Return N vectors for every step k = 1 .. K-1. All steps at once: M is folded into the batch."""
        batch = f.shape[0]
        latent_steps = f.shape[1] - 1
        keys, values, mask = self._context(f)
        q = self.queries.to(f.dtype).expand(batch * latent_steps, -1, -1)
        for i, cross in enumerate(self.cross):
            if i < len(self.mlp):
                q = self.norm_cross[i](q + cross(q, keys, values, mask))
                q = self.norm_mlp[i](q + self.mlp[i](q))
            elif self.config.last_residual:
                q = self.norm_cross[i](q + cross(2 * q, keys, values, mask))
            else:
                # Neither skip connection nor MLP: what leaves is read from the features alone.
                q = self.norm_cross[i](cross(q, keys, values, mask))
        return q.unflatten(0, (batch, latent_steps))
