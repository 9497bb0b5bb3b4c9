"""The statistics of a column that a LeRobotDataset stores: range, mean, deviation and five quantiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLED_IMAGES = 8
"""of each episode, evenly spaced, for the statistics of a camera"""


def number_statistics(values: NDArray[Any]) -> dict[str, list[float]]:
    """Return the statistics of numbers [T, n], a list of n each; `count` is the number of rows."""
    exact = values.astype(np.float64)
    found = {"min": exact.min(0), "max": exact.max(0), "mean": exact.mean(0), "std": exact.std(0)}
    found |= dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True))
    return {**{name: value.tolist() for name, value in found.items()}, "count": [len(values)]}


def histogram(images: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Return how often each value occurs in each channel, [3, 256]."""
    pixels = np.stack(images).reshape(-1, 3)
    return np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]).astype(np.int64)


def image_statistics(histogram_CV: NDArray[np.int64], *, images: int) -> dict[str, list[Any]]:
    """Return the statistics of the pixels of `images` images, in the range 0 to 1, shaped [3, 1, 1]."""
    # C channels · V = 256 values
    level = np.arange(256) / 255
    count = histogram_CV.sum(1)
    mean = histogram_CV @ level / count
    variance = histogram_CV @ level**2 / count - mean**2
    below = np.cumsum(histogram_CV, axis=1) / count[:, None]
    found = {
        "min": level[(histogram_CV > 0).argmax(1)],
        "max": level[255 - (histogram_CV[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0)),  # rounding may make it negative
        **{name: level[(below >= share).argmax(1)] for name, share in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}, "count": [images]}
