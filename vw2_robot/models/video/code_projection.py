"""The projection of codes to context tokens of the video diffusion model, and the masks of its cross-attention.

Place in the flow: between the dLDM's codes and the cross-attention of `vdm.py`, in place of the text. Table A.2 of the
paper compares the MLP alone (`layers=0`) with causal self-attention; the published weights have neither, but a
convolution (`CodeConnector`).
"""

# B batch · M latent steps · N codes per step · L code dimensions · S = 1 + M*N keys (null token first)
# D width of the cross-attention · Q queries of the video diffusion model
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..dldm.causal_video import ResidualBlock


class CodeProjection(nn.Module):
    """MLP, step and slot embedding, block-causal self-attention; a null token in front, the only one for frame 0."""

    def __init__(
        self,
        *,
        fsq_dims: int,
        latent_steps: int,
        queries: int,
        width: int,
        layers: int,
        head_dim: int = 64,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(fsq_dims, width), nn.GELU(), nn.Linear(width, width))
        self.step = nn.Parameter(torch.randn(latent_steps, width) * 0.02)
        self.slot = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        heads = max(1, width // head_dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Identity() if context_width in (None, width) else nn.Linear(width, context_width or width)

    def forward(self, codes: Float[Tensor, "B M N L"]) -> Float[Tensor, "B S D"]:
        """Return context tokens. A token attends to those of its own step and before; the null token to itself."""
        batch, latent_steps, queries, _ = codes.shape
        tokens = self.mlp(codes) + self.step[:latent_steps, None] + self.slot
        tokens = rearrange(tokens, "b m n d -> b (m n) d")
        # The null token is what frame 0 attends to, and every frame where the codes are dropped.
        tokens = torch.cat([self.null.expand(batch, 1, -1), tokens], dim=1)
        hidden = ~visible_keys(key_steps(latent_steps, queries, tokens.device), "causal")
        for layer in self.layers:
            tokens = layer(tokens, src_mask=hidden)
        out: Tensor = self.widen(self.norm(tokens))
        return out


class CodeConnector(nn.Module):
    """The released projection: a causal residual block along the flat row of codes, padded with zeros.

    A key of zeros has the logit 0 and the value 0: attention that finds nothing in the codes goes there.

    Args:
        fsq_dims: L.
        lifted: channels of a code before the block; its weights are also the first of the dLDM's decoder.
        width: D.
        tokens: S, keys with those of zeros.
    """

    null: Tensor

    def __init__(self, *, fsq_dims: int, lifted: int, width: int, tokens: int) -> None:
        super().__init__()
        self.lift = nn.Linear(fsq_dims, lifted)
        self.block = ResidualBlock(lifted, width)
        # In place of the codes where they are dropped; the release has the embedding of a negative prompt there.
        self.register_buffer("null", torch.zeros(tokens, width))

    def forward(
        self, codes: Float[Tensor, "B M N L"], keep: Bool[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Return context tokens; samples with False in `keep` get the null context.

        Raises:
            ValueError: there are more codes than tokens.
        """
        row = self.block(rearrange(self.lift(codes), "b m n z -> b (m n) z 1 1"))[..., 0, 0]
        if row.shape[1] > len(self.null):
            raise ValueError(f"vdm.context_tokens={len(self.null)} has no room for {row.shape[1]} codes")
        context = F.pad(row, (0, 0, 0, len(self.null) - row.shape[1]))
        return context if keep is None else torch.where(keep[:, None, None], context, self.null.to(context.dtype))


def key_steps(latent_steps: int, queries: int, device: torch.device) -> Tensor:
    """Return the latent step of every context token: 0 for the null token, then k for the N codes of step k.

    Args:
        latent_steps: M.
        queries: N, codes per step.
        device: of the result.
    """
    return torch.cat(
        [torch.zeros(1, dtype=torch.long), torch.arange(1, latent_steps + 1).repeat_interleave(queries)]
    ).to(device)


def visible_keys(key_steps: Tensor, visibility: str, query_frames: Tensor | None = None) -> Bool[Tensor, "Q S"]:
    """Return True where a query may attend to a key.

    Args:
        key_steps: latent step of each key, from `key_steps`.
        visibility: causal: steps <= the query's frame; current: its own step and the null token; none: everything, as
            in the release.
        query_frames: latent frame of each query; None: the queries are the keys.
    """
    query_frames = key_steps if query_frames is None else query_frames
    if visibility == "none":
        return torch.ones(len(query_frames), len(key_steps), dtype=torch.bool, device=key_steps.device)
    if visibility == "causal":
        return key_steps[None] <= query_frames[:, None]
    return (key_steps[None] == query_frames[:, None]) | (key_steps[None] == 0)
