"""The control branch (ControlNet): the control video becomes residuals of the video diffusion model's first blocks.

Place in the flow: beside the transformer in `vdm.py`; the control video is the coarse clip of the dLDM, as latents.
There are two variants. In both `residuals[i]` is added to the output of block i, and both begin at exactly zero, so
that a new branch changes no bit of the transformer's output. Table 3a of the paper compares training with and without
this branch.
"""

# B batch · K latent frames · C latent channels · h, w latent grid · Q = K * h/2 * w/2 tokens · W width of a token
from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cosmos import blocks_of, plain_state

# Of the released branch: the weight of its residuals, and the widths between control patches and transformer.
FULL_WEIGHT = 0.5
FULL_CONTROL_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
RELEASED_CHANNELS = 129
"""16 of the latents, zeros, and one that would mark padding"""


class LightControl(nn.Module):
    """Patches of the control video, a small MLP, one zero-initialized linear per block; for tiny models and LoRA."""

    def __init__(self, channels: int, *, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(channels, hidden, (1, 2, 2), stride=(1, 2, 2))
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.out = nn.ModuleList(_zero_linear(hidden, width) for _ in range(blocks))

    def forward(self, control_video: Float[Tensor, "B C K h w"]) -> list[Float[Tensor, "B Q W"]]:
        """Return one residual per controlled block."""
        tokens = self.mlp(rearrange(self.embed(control_video), "b c k h w -> b (k h w) c"))
        return [layer(tokens) for layer in self.out]


class FullControl(nn.Module):
    """Copies of the first blocks, run on the noisy clip with the same times and codes; control enters after the first.

    Patch embedding, time embedding and rotary positions are the transformer's, but for `released`.

    Args:
        transformer: is copied from.
        channels: C.
        width: W.
        blocks: how many are copied.
        released: as the published weights: copies of both embeddings, and further channels of zeros for the control
            video. Their last layer, which nothing reads, is kept in `unread` for those who write them back.
    """

    def __init__(
        self, transformer: nn.Module, channels: int, *, width: int, blocks: int, released: bool = False
    ) -> None:
        super().__init__()
        self.released = released
        self.blocks = nn.ModuleList(
            # Trained, so in float32, also beside a frozen transformer in bfloat16.
            copy.deepcopy(block).float()
            for block in blocks_of(transformer)[:blocks]
        )
        if released:
            self.patch_embed = copy.deepcopy(transformer.patch_embed)
            self.time_embed = copy.deepcopy(transformer.time_embed)
            self.rope = transformer.rope  # has no weights
            self.unread = nn.ModuleDict(
                {name: copy.deepcopy(getattr(transformer, name)) for name in ("norm_out", "proj_out")}
            )
            for part in (self.patch_embed, self.time_embed, self.unread):
                part.float()
        self.embed = nn.Conv3d(
            RELEASED_CHANNELS if released else channels, width, (1, 2, 2), stride=(1, 2, 2), bias=not released
        )
        widths = (width, *FULL_CONTROL_WIDTHS, width)
        layers = [layer for i, o in pairwise(widths) for layer in (nn.SiLU(), nn.Linear(i, o))]
        self.mlp = nn.Sequential(*layers[released:])  # the published one begins without SiLU
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.after = nn.ModuleList(_zero_linear(width, width) for _ in range(blocks))
        self.checkpointing = False

    def copy_blocks(self, transformer: nn.Module) -> None:
        """Copy the transformer's present weights into the blocks, and into embeddings (without adapters)."""
        if self.released:
            for name in ("patch_embed", "time_embed"):
                getattr(self, name).load_state_dict(plain_state(getattr(transformer, name)))
        for copied, block in zip(self.blocks, blocks_of(transformer), strict=False):
            copied.load_state_dict(plain_state(block))

    def forward(
        self, tokens: Tensor, arguments: tuple[Any, ...], control_video: Float[Tensor, "B C K h w"]
    ) -> list[Tensor]:
        """Return one residual per copied block, of the shape of the tokens.

        Args:
            tokens: of the noisy clip, as the first block gets them.
            arguments: what a block gets after its tokens: context, times, positions.
            control_video: latents of the coarse clip.
        """
        missing = self.embed.in_channels - control_video.shape[1]
        control_video = F.pad(control_video, (0, 0, 0, 0, 0, 0, 0, missing))
        residuals = []
        for i, (block, after) in enumerate(zip(self.blocks, self.after, strict=True)):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *arguments, use_reentrant=False)
            else:
                tokens = block(tokens, *arguments)
            if i == 0:
                entering = self.mlp(rearrange(self.embed(control_video), "b c k h w -> b (k h w) c"))
                tokens = tokens + entering.view_as(tokens)
            residuals.append(FULL_WEIGHT * after(tokens))
        return residuals


@contextmanager
def residuals_added(transformer: nn.Module, residuals: Sequence[Tensor]) -> Iterator[None]:
    """Add the residuals to the outputs of the first blocks inside the `with`; afterwards no hook is left.

    Args:
        transformer: its blocks get forward hooks.
        residuals: one for each of the first blocks; empty: nothing is changed.
    """

    def add(module: nn.Module, args: Any, output: Tensor, *, residual: Tensor) -> Tensor:
        # Not every family has its tokens as [B, Q, W].
        return output + residual.to(output.dtype).view_as(output)

    handles = []
    if residuals:
        for block, residual in zip(blocks_of(transformer)[: len(residuals)], residuals, strict=True):
            handles.append(block.register_forward_hook(partial(add, residual=residual)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_linear(width_in: int, width_out: int) -> nn.Linear:
    # Built as usual, so that the global generator moves on as for any other layer.
    layer = nn.Linear(width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
