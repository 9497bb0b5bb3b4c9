"""An augmentation of the encoder's input: view and light drift away from frame 0, and codes learn to leave that out.

A reconstruction loss rewards a code for every change of the image, so a moving camera and changing light get codes as
an action does. Here the encoder sees a clip over which view and brightness drift, while the decoder and the video
diffusion model must produce the clip without the drift. Codes spent on the drift are wasted. Neither in the paper nor
in the release; off unless `train_dldm.encoder_augmentation` is positive. The camera-cut test of the latent report
measures what it brings.
"""

# B batch · T frames
from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vw2_robot.random_numbers import SampleNoise

SHARE_AUGMENTED = 0.5
MAX_SHIFT = 0.15
"""of the image's side, from frame 0 to the last frame at strength 1"""
MAX_ZOOM = 0.1
"""of the image's size"""
MAX_GAIN = 0.3
"""of its brightness"""


def drift(x: Float[Tensor, "B T 3 H W"], *, strength: float, noise: SampleNoise) -> Float[Tensor, "B T 3 H W"]:
    """Return the clips, half of them with a drifting view (shift and zoom) and light; frame 0 stays as it is.

    Args:
        x: pixels in [-1, 1].
        strength: multiplies the largest drift; 0 returns `x` itself and samples nothing.
        noise: of these B clips.
    """
    if strength == 0:
        return x
    batch, num_frames = x.shape[:2]
    # One uniform number decides whether a clip is augmented, four how: shift in x and y, zoom, gain.
    uniform = noise.rand(5).to(x)
    amount = (uniform[:, 1:] * 2 - 1) * strength * (uniform[:, :1] < SHARE_AUGMENTED)
    # Linear in time, zero at frame 0: the anchor of the clip shows no drift.
    at_frame = (
        amount[:, None] * torch.linspace(0, 1, num_frames, device=x.device, dtype=x.dtype)[None, :, None]
    )  # [B, T, 4]
    view = x.new_zeros(batch, num_frames, 2, 3)
    # The grid maps output to input: a factor above 1 shrinks the image, and repeats its edges around it.
    zoom = 1 + MAX_ZOOM * at_frame[..., 2]
    view[..., 0, 0] = zoom
    view[..., 1, 1] = zoom
    view[..., :2, 2] = 2 * MAX_SHIFT * at_frame[..., :2]  # the sampling grid is two units wide
    grid = F.affine_grid(view.flatten(0, 1), [batch * num_frames, *x.shape[2:]], align_corners=False)
    moved = F.grid_sample(x.flatten(0, 1), grid.to(x.dtype), padding_mode="border", align_corners=False)
    gain = 1 + MAX_GAIN * at_frame[..., 3, None, None, None]
    # A gain about black, which is -1 here.
    lit = ((moved.unflatten(0, (batch, num_frames)) + 1) * gain - 1).clamp(-1, 1)
    # Clips without drift are taken from `x` itself: resampling, even by nothing, would change their pixels.
    return torch.where((amount != 0).any(1)[:, None, None, None, None], lit, x)
