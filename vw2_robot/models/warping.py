"""Backward warping: later frames as the first frame, moved by flow fields.

Place in the flow: arithmetic below the decoder of the dLDM and the warp output of the video model, no weights. A model
that paints must render a moved arm completely before its codes lower the loss. A flow needs only the arm's
displacement, so gradients carry motion from the first step (as in unsupervised video prediction: Finn, Goodfellow &
Levine 2016).
"""

# B batch · T1 frames after the first · h, w coarse grid · H, W pixels
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

FLOW_SCALE = 0.25
"""flow of one unit of a network's output, in half image widths; small, so that training starts near a still image"""


def warped_frames(
    flow: Float[Tensor, "B T1 2 h w"], first_frame: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B T1 3 H W"]:
    """Return the first frame, sampled where the flow says; the edge is repeated outside.

    Args:
        flow: (x, y) offsets of each later frame in half image widths, on a coarse grid.
        first_frame: pixels.
    """
    batch, num_frames = flow.shape[:2]
    # The flow is smooth, so it is predicted on the coarse grid and interpolated to pixels: bilinearly, as two matrix
    # products, whose backward pass takes a fifth of the time of `F.interpolate`'s.
    height, width = first_frame.shape[-2:]
    rows, columns = _linear(flow.shape[-2], height).to(flow), _linear(flow.shape[-1], width).to(flow)
    flow = rows @ (flow.flatten(0, 1) @ columns.T)
    # Each target pixel samples the source at its own place, from -1 to 1, plus the flow.
    y, x = ((2 * torch.arange(size).to(flow) + 1) / size - 1 for size in (height, width))
    still = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    source = first_frame[:, None].expand(-1, num_frames, -1, -1, -1).flatten(0, 1).to(flow.dtype)
    grid = still + rearrange(flow, "n two h w -> n h w two")
    moved = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return moved.unflatten(0, (batch, num_frames))


def _linear(size: int, larger: int) -> Float[Tensor, "larger size"]:
    """Return the matrix that interpolates linearly from `size` to `larger` places."""
    return F.interpolate(torch.eye(size)[None], size=larger, mode="linear", align_corners=False)[0].T
