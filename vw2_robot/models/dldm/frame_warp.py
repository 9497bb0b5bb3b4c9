"""The flow head of the dLDM's decoder: every later frame is the first frame, warped by a predicted flow field.

Place in the flow: the last layer with `dldm.output=warp`, beside the pixel head. A pixel head must render a moved arm
completely before its codes lower the loss. A flow needs only the arm's displacement, so gradients carry motion from the
first step (as in unsupervised video prediction: Finn, Goodfellow & Levine 2016). Our addition, in neither paper nor
release; its effect is measured in docs/dldm.md.
"""

# B batch · T frames · K feature steps · C feature width · h, w feature grid · H, W pixels
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

FLOW_SCALE = 0.25
"""flow of one unit of output, in half image widths; small, so that training starts near a still image"""


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
        flow = self.fields(features)
        batch, num_frames = flow.shape[:2]
        if num_frames == 0:
            return first_frame[:, None]
        # The flow is smooth, so it is predicted on the coarse grid and interpolated to pixels: bilinearly, as two
        # matrix products, whose backward pass takes a fifth of the time of `F.interpolate`'s.
        height, width = first_frame.shape[-2:]
        rows, columns = _linear(flow.shape[-2], height).to(flow), _linear(flow.shape[-1], width).to(flow)
        flow = rows @ (flow.flatten(0, 1) @ columns.T)
        # Backward warping: each target pixel samples the source at its own place, from -1 to 1, plus the flow.
        y, x = ((2 * torch.arange(size).to(flow) + 1) / size - 1 for size in (height, width))
        still = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        source = first_frame[:, None].expand(-1, num_frames, -1, -1, -1).flatten(0, 1).to(flow.dtype)
        grid = still + rearrange(flow, "n two h w -> n h w two")
        moved = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        return torch.cat([first_frame[:, None].to(moved.dtype), moved.unflatten(0, (batch, num_frames))], dim=1)


def _linear(size: int, larger: int) -> Float[Tensor, "larger size"]:
    """Return the matrix that interpolates linearly from `size` to `larger` places."""
    return F.interpolate(torch.eye(size)[None], size=larger, mode="linear", align_corners=False)[0].T
