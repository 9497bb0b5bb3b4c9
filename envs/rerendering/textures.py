"""Procedural textures: plain, noise, stripes, checks and wood, each a field of weights between two colors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pattern = Literal["plain", "noise", "stripes", "checks", "wood"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
Color = tuple[float, float, float]
"""RGB in 0..1."""
SIZE_PX = 96


@dataclass(frozen=True)
class Texture:
    """A pattern in two colors; equal textures give equal images."""

    pattern: Pattern
    dark: Color
    light: Color
    cells: float
    """waves, squares or patches along the image"""
    angle: float
    """of the pattern in the image, radians"""
    seed: int
    """of its noise"""


def texture_image(texture: Texture) -> NDArray[np.uint8]:
    """Return the image, uint8 [96, 96, 3]."""
    rng = np.random.default_rng(texture.seed)
    weight = 0.85 * _field(texture, rng) + 0.15 * _noise(rng, 24)
    colors = np.array(texture.dark) + weight[..., None] * np.subtract(texture.light, texture.dark)
    return np.asarray(colors * 255, np.uint8)


def sample_color(rng: np.random.Generator, *, saturation: float) -> Color:
    """Return a random color; `saturation` from 0 (gray) to 1 mixes in its hue."""
    color = rng.uniform(0.12, 0.95, 3)
    red, green, blue = (color.mean() + saturation * (color - color.mean())).tolist()
    return red, green, blue


def sample_texture(rng: np.random.Generator) -> Texture:
    """Return a random texture; its two colors are often near each other, as in most materials."""
    first = sample_color(rng, saturation=float(rng.uniform(0, 1)))
    second = sample_color(rng, saturation=float(rng.uniform(0, 1)))
    nearness = rng.uniform(0.3, 1.0)
    red, green, blue = (nearness * np.array(first) + (1 - nearness) * np.array(second)).tolist()
    return Texture(
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
        dark=first,
        light=(red, green, blue),
        cells=float(rng.uniform(2, 9)),
        angle=float(rng.uniform(0, np.pi)),
        seed=int(rng.integers(2**32)),
    )


def _field(texture: Texture, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the weight of the light color, float64 [96, 96] in 0..1."""
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX] / SIZE_PX
    along = np.cos(texture.angle) * columns + np.sin(texture.angle) * rows
    across = np.cos(texture.angle) * rows - np.sin(texture.angle) * columns
    if texture.pattern == "plain":
        return np.full((SIZE_PX, SIZE_PX), 0.5)
    if texture.pattern == "noise":
        cells = int(texture.cells)
        return 0.6 * _noise(rng, cells) + 0.4 * _noise(rng, 3 * cells)
    if texture.pattern == "stripes":
        return np.asarray(0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * texture.cells * along)))
    if texture.pattern == "checks":
        return np.asarray((np.floor(texture.cells * along) + np.floor(texture.cells * across)) % 2)
    # Growth rings, bent by slow noise: they brighten slowly and end suddenly.
    return np.asarray((texture.cells * (along + 0.25 * _noise(rng, 3))) % 1.0)


def _noise(rng: np.random.Generator, cells: int) -> NDArray[np.float64]:
    """Return smooth noise, float64 [96, 96] in 0..1, with this number of cells along each side."""
    grid = Image.fromarray(rng.integers(256, size=(cells + 1, cells + 1), dtype=np.uint8))
    return np.asarray(grid.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.float64) / 255
