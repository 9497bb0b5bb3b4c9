"""Motion as a flow field: every later frame is the first frame, its pixels taken from somewhere else.

Place in the flow: the last layer of the dLDM's decoder with `dldm.output=warp`, beside the pixel head. A pixel head has
to paint a moved arm anew before its codes earn anything; a flow has only to say where the arm went, so the gradient
speaks of motion from the first step (as in unsupervised video prediction: Finn, Goodfellow & Levine 2016). Our
addition, in neither paper nor release; what it brings is measured in docs/dldm.md.
"""

# B batch · T frames · K feature steps · C feature width · h, w feature grid · H, W pixels
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

FLOW_SCALE = 0.25
"""Flow of one unit of output, in half image widths; small, so that training starts near a still image."""


class FrameWarp(nn.Module):
    """Decoder features -> a flow field for each frame -> the first frame, warped. Starts at the identity."""

    def __init__(self, width: int, frames_per_step: int) -> None:
        super().__init__()
        self.frames_per_step = frames_per_step
        self.flow = nn.Conv2d(width, 2 * frames_per_step, 3, padding=1)
        for parameter in self.flow.parameters():
            nn.init.zeros_(parameter)

    def fields(self, features: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B T1 2 h w"]:
        """Where frames 1 .. T-1 look in the first frame: (x, y) offsets in half image widths, on the coarse grid."""
        flow = self.flow(features[:, 1:].flatten(0, 1)) * FLOW_SCALE
        return rearrange(flow, "(b m) (p two) h w -> b (m p) two h w", b=len(features), p=self.frames_per_step)

    def forward(
        self, features: Float[Tensor, "B K C h w"], first_frame: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B T 3 H W"]:
        """T = 1 + (K-1) * frames_per_step; frame 0 is `first_frame` itself. Beyond the border the edge is repeated."""
        flow = self.fields(features)
        batch, frames = flow.shape[:2]
        if frames == 0:
            return first_frame[:, None]
        height, width = first_frame.shape[-2:]
        flow = F.interpolate(flow.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False)
        still = torch.eye(2, 3, device=flow.device, dtype=flow.dtype).expand(len(flow), -1, -1)
        grid = F.affine_grid(still, [len(flow), 3, height, width], align_corners=False)
        source = first_frame[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1).to(flow.dtype)
        grid = grid + rearrange(flow, "n two h w -> n h w two")
        moved = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        return torch.cat([first_frame[:, None].to(moved.dtype), moved.unflatten(0, (batch, frames))], dim=1)
