"""The control branch: the dLDM's coarse clip becomes residuals of the video diffusion model's first blocks.

Place in the flow: beside the transformer in `vdm.py`, in the manner of ControlNet. Two variants with one meaning,
`residuals[i]` is added to the output of block i, and both begin at exactly zero, so that a new branch changes no bit of
what the transformer says. Method specification 1.8. Table 3a of the paper is about having this branch at all.
"""

# B batch · K latent frames · C latent channels · h, w latent grid · Q = K * h/2 * w/2 tokens · W width of a token
# S context tokens, of width D
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cosmos import blocks_of, plain_state

# Of the released branch: how strongly it speaks, and the widths between the hint's patches and the transformer.
FULL_WEIGHT = 0.5
FULL_CONTROL_WIDTHS = (16, 16, 32, 32, 96, 96, 256)


class LightControl(nn.Module):
    """Hint patches, a small MLP, one zero-initialized linear per block; the choice for tiny models and LoRA."""

    def __init__(self, channels: int, *, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(channels, hidden, (1, 2, 2), stride=(1, 2, 2))
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.out = nn.ModuleList(_zero(nn.Linear(hidden, width)) for _ in range(blocks))

    def forward(self, control_video: Float[Tensor, "B C K h w"]) -> list[Float[Tensor, "B Q W"]]:
        """One residual per controlled block."""
        tokens = self.mlp(rearrange(self.embed(control_video), "b c k h w -> b (k h w) c"))
        return [layer(tokens) for layer in self.out]


class FullControl(nn.Module):
    """Copies of the first blocks, run on the noisy clip with the same times and codes; the hint enters after the first.

    Patch and time embedding and rotary positions are the transformer's own. The release pads the hint's 16 channels
    with zeros to 128 before its patches; weights on zeros never learn, so they are left out here.
    """

    def __init__(self, transformer: nn.Module, channels: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in blocks_of(transformer)[:blocks])
        self.embed = nn.Conv3d(channels, width, (1, 2, 2), stride=(1, 2, 2))
        widths = (width, *FULL_CONTROL_WIDTHS, width)
        layers = [layer for i, o in pairwise(widths) for layer in (nn.SiLU(), nn.Linear(i, o))]
        self.mlp = nn.Sequential(*layers)
        _zero(self.mlp[-1])
        self.after = nn.ModuleList(_zero(nn.Linear(width, width)) for _ in range(blocks))
        self.checkpointing = False

    def copy_blocks(self, transformer: nn.Module) -> None:
        """Make the blocks equal to the transformer's as they are now (adapters left out)."""
        for copied, block in zip(self.blocks, blocks_of(transformer), strict=False):
            copied.load_state_dict(plain_state(block))

    def forward(
        self,
        transformer: nn.Module,
        x: Float[Tensor, "B C2 K h w"],
        times: Float[Tensor, "B K"],
        context: Float[Tensor, "B S D"],
        control_video: Float[Tensor, "B C K h w"],
    ) -> list[Float[Tensor, "B Q W"]]:
        """One residual per copied block; `x` is what the transformer sees, marks of the first frame included."""
        batch, _, frames = x.shape[:3]
        tokens = transformer.patch_embed(x).flatten(1, 3)  # type: ignore[operator]
        per_frame = tokens.shape[1] // frames
        temb, embedded = (
            t.view(batch, frames, -1).repeat_interleave(per_frame, dim=1)
            for t in transformer.time_embed(tokens, times.flatten())  # type: ignore[operator]
        )
        rotary = transformer.rope(x, fps=None)  # type: ignore[operator]
        residuals = []
        for i, (block, after) in enumerate(zip(self.blocks, self.after, strict=True)):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, context, embedded, temb, rotary, use_reentrant=False)
            else:
                tokens = block(tokens, context, embedded, temb, rotary)
            if i == 0:
                tokens = tokens + self.mlp(rearrange(self.embed(control_video), "b c k h w -> b (k h w) c"))
            residuals.append(FULL_WEIGHT * after(tokens))
        return residuals


@contextmanager
def residuals_added(transformer: nn.Module, residuals: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the first blocks answer with their residual added; outside, no hook is left, not even after an error."""
    handles = []
    if residuals:
        for block, residual in zip(blocks_of(transformer)[: len(residuals)], residuals, strict=True):
            handles.append(block.register_forward_hook(_adder(residual)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(residual: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + residual.to(output.dtype)

    return add


def _zero(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
