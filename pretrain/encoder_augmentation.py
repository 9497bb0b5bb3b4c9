"""Camera and light that drift while the encoder looks, and not in what is reconstructed: codes learn to leave them out.

A reconstruction loss rewards a code for every change of the image, so a swaying camera and a passing cloud get codes
as an action does. Here the encoder sees a clip over which view and brightness drift away from those of frame 0, the
decoder and the video diffusion model are asked for the clip without the drift. What the codes then spend on it is
wasted. Neither in the paper nor in the release; off unless `train_dldm.encoder_augmentation` says otherwise; the
camera-cut test of the latent report measures what it brings.
"""

# B batch · T frames
from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHARE_DISTURBED = 0.5
MOST_SHIFT, MOST_ZOOM, MOST_GAIN = 0.15, 0.1, 0.3
"""Drift from frame 0 to the last frame at strength 1: of the image's side, of its size, of its brightness."""


def disturb(x: Float[Tensor, "B T 3 H W"], *, strength: float, noise: torch.Generator) -> Float[Tensor, "B T 3 H W"]:
    """Half of the clips with a drifting view (shift and zoom) and light; frame 0 and the others stay as they are.

    Args:
        x: pixels in [-1, 1].
        strength: multiplies the most that drifts; 0 returns `x` itself.
        noise: on the CPU.
    """
    if strength == 0:
        return x
    batch, frames = x.shape[:2]
    draw = torch.rand(batch, 5, generator=noise).to(x.device)
    amount = (draw[:, 1:] * 2 - 1) * strength * (draw[:, :1] < SHARE_DISTURBED)
    drift = amount[:, None] * torch.linspace(0, 1, frames, device=x.device)[None, :, None]  # [B, T, 4]
    view = torch.zeros(batch, frames, 2, 3, device=x.device)
    view[..., 0, 0] = view[..., 1, 1] = 1 + MOST_ZOOM * drift[..., 2]
    view[..., :2, 2] = 2 * MOST_SHIFT * drift[..., :2]  # the grid is two units wide
    grid = F.affine_grid(view.flatten(0, 1), [batch * frames, *x.shape[2:]], align_corners=False)
    moved = F.grid_sample(x.flatten(0, 1), grid.to(x.dtype), padding_mode="border", align_corners=False)
    gain = 1 + MOST_GAIN * drift[..., 3, None, None, None]
    lit = ((moved.unflatten(0, (batch, frames)) + 1) * gain - 1).clamp(-1, 1)
    return torch.where((amount != 0).any(1)[:, None, None, None, None], lit, x)
