"""A camera that sways: the images of a recording move by a few pixels, smoothly, as under a camera that turns a little.

To first order a small turn of a camera far away moves all of its image alike. Borders are repeated.
"""

# L frames
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FREQUENCY_HZ = (0.1, 0.6)
"""of the sway along each axis, lowest and highest"""


def sway(images: NDArray[np.uint8], *, largest_px: int, hz: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the images, each moved by a whole number of pixels; what is random is the same for all of them.

    Args:
        images: [L, H, W, 3], of one recording.
        largest_px: of the motion along each axis.
        hz: images per second.
        rng: generator of frequencies and phases.
    """
    frequency, phase = rng.uniform(*FREQUENCY_HZ, 2), rng.uniform(0, 2 * np.pi, 2)
    time = np.arange(len(images))[:, None] / hz
    moved = np.rint(largest_px * np.sin(2 * np.pi * frequency * time + phase)).astype(int) + largest_px
    height, width = images.shape[1:3]
    margin = (largest_px, largest_px)
    padded = np.pad(images, ((0, 0), margin, margin, (0, 0)), mode="edge")
    return np.stack(
        [image[y : y + height, x : x + width] for image, (y, x) in zip(padded, moved.tolist(), strict=True)]
    )
