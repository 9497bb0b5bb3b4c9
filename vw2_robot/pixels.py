"""Images between uint8 [0, 255] HWC (disk, simulators) and float [-1, 1] CHW (models), their sizes, their augmentation.

No other file converts between the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vw2_robot.random_numbers import SampleNoise


def to_model_range(pixels: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch 3 H W"]:
    """Return float32 [-1, 1], channels first, of uint8 [0, 255], channels last; on the device of the pixels."""
    return torch.movedim(pixels.to(torch.float32) / 127.5 - 1.0, -1, -3)


def to_pixels(x: Float[Tensor, "*batch 3 H W"]) -> UInt8[Tensor, "*batch H W 3"]:
    """Return uint8 [0, 255], channels last: the inverse of `to_model_range`, rounded and clamped."""
    # float32 first: bfloat16 has 8 significant bits, and the arithmetic would be off by a level.
    return torch.movedim(((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8), -3, -1)


def resize_video(x: Float[Tensor, "B T 3 H W"], height: int, width: int) -> Float[Tensor, "B T 3 h w"]:
    """Return the frames at another size, bilinear and antialiased; `x` itself where it has that size.

    Args:
        x: frames.
        height: of the result.
        width: of the result.
    """
    if tuple(x.shape[-2:]) == (height, width):
        return x
    frames = F.interpolate(x.flatten(0, 1), (height, width), mode="bilinear", antialias=True, align_corners=False)
    return frames.unflatten(0, x.shape[:2])


def shift_randomly(x: Float[Tensor, "B 3 H W"], *, most: int, noise: SampleNoise) -> Float[Tensor, "B 3 H W"]:
    """Translate every image by a random offset, repeating the edge (the random shift of DrQ).

    Args:
        x: images.
        most: largest offset in each direction, in pixels; 0 returns `x`.
        noise: of these B images; one offset each.
    """
    if most == 0:
        return x
    height, width = x.shape[-2:]
    offset = noise.randint(-most, most + 1, 2).to(x.device)
    rows = (torch.arange(height, device=x.device) + offset[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + offset[:, 1:]).clamp(0, width - 1)
    # By index, not by interpolation: pixel values stay what they were.
    picked = torch.gather(x, 2, rows[:, None, :, None].expand(-1, 3, -1, width))
    return torch.gather(picked, 3, columns[:, None, None, :].expand(-1, 3, height, -1))


def jitter_color(x: Float[Tensor, "B *T 3 H W"], *, strength: float, noise: SampleNoise) -> Float[Tensor, "B *T 3 H W"]:
    """Return images or clips with changed brightness, contrast and channel gains, still in [-1, 1].

    Args:
        x: pixels in [-1, 1].
        strength: largest change; 0 returns `x` itself and samples nothing.
        noise: of these B samples; all frames of a clip change alike.
    """
    if strength == 0:
        return x
    change = (noise.rand(5) * 2 - 1).to(x) * strength
    each = (len(x), *(1,) * (x.ndim - 4))  # a number for each sample, whatever its frames
    brightness = change[:, 0].view(*each, 1, 1, 1)
    contrast = 1 + change[:, 1].view(*each, 1, 1, 1)
    gains = 1 + 0.5 * change[:, 2:].view(*each, 3, 1, 1)  # of red, green and blue
    # Gains about black, which is -1; contrast about mid-gray, which is 0.
    return (((x + 1) * gains - 1) * contrast + brightness).clamp(-1, 1)
