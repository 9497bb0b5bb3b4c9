"""The flow head of the dLDM's decoder: every later frame is the first frame, warped by a predicted flow field.

Place in the flow: the last layer with `dldm.output=warp`, beside the pixel head. Our addition, in neither paper nor
release; `models/warping.py` says what it is for, docs/dldm.md what it does.
"""

# B batch · T frames · K feature steps · C feature width · h, w feature grid · H, W pixels
from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..warping import FLOW_SCALE, warped_frames


class FrameWarp(nn.Module):
    """A convolution from decoder features to one flow field per frame, and the warp of the first frame by it.

    It starts at the identity: its weights begin at zero.
    """

    def __init__(self, width: int, frames_per_step: int) -> None:
        super().__init__()
        self.frames_per_step = frames_per_step
        self.flow = nn.Conv2d(width, 2 * frames_per_step, 3, padding=1)
        for parameter in self.flow.parameters():
            nn.init.zeros_(parameter)

    def fields(self, features: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B T1 2 h w"]:
        """Return where frames 1 .. T-1 sample the first frame: (x, y) offsets in half image widths, coarse grid."""
        flow = self.flow(features[:, 1:].flatten(0, 1)) * FLOW_SCALE
        return rearrange(flow, "(b m) (p two) h w -> b (m p) two h w", b=len(features), p=self.frames_per_step)

    def forward(
        self, features: Float[Tensor, "B K C h w"], first_frame: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B T 3 H W"]:
        """Return T = 1 + (K-1) * frames_per_step frames; frame 0 is `first_frame`. The edge is repeated outside."""
        if features.shape[1] == 1:
            return first_frame[:, None]
        moved = warped_frames(self.fields(features), first_frame)
        return torch.cat([first_frame[:, None].to(moved.dtype), moved], dim=1)
