"""Textures of the built-in scenes: wood made from noise, the floor, and plain colors.

Each wood is a scalar field (growth rings bent by slow noise, fine fibers along the grain, pores) mapped to a ramp of 48
colors between two shades. u (columns) runs along the grain. Equal woods and seeds give equal images.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
RAMP = 48  # colors of a texture: few, so that the files stay small
SIZE_PX = 256


@dataclass(frozen=True)
class Wood:
    """One kind of wood: two sRGB shades, and how the grain runs."""

    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    seed: int
    rings: float = 14.0  # growth rings across the image
    bend: float = 0.12  # how far slow noise bends them
    fiber: float = 0.30  # weight of the fine fibers, 0..1


def wood_png(wood: Wood) -> bytes:
    """Return the PNG bytes of a wood texture."""
    rng = np.random.Generator(np.random.PCG64(wood.seed))
    across = (np.arange(SIZE_PX) / SIZE_PX)[:, None]
    slow = _noise(rng, along=3, across=4)
    rings = wood.rings * (across + wood.bend * (slow - 0.5)) + 0.5 * _noise(rng, along=4, across=24)
    phase = rings - np.floor(rings)
    late_wood = phase**3 * (1.0 - np.clip((phase - 0.93) / 0.07, 0.0, 1.0))  # slow rise, sudden end: a growth ring
    fibers = 0.6 * _noise(rng, along=10, across=128) + 0.4 * _noise(rng, along=28, across=256)
    # Short dark strokes where fine noise is highest.
    pores = _noise(rng, along=24, across=200) > 0.83
    field = (1.0 - wood.fiber) * (1.0 - late_wood) * (0.55 + 0.45 * slow) + wood.fiber * fibers - 0.16 * pores
    # Quantiles instead of extremes: single pores must not set the contrast.
    low, high = np.quantile(field, [0.01, 0.99])
    index = np.clip(np.floor((field - low) / (high - low) * RAMP), 0, RAMP - 1).astype(np.uint8)
    ramp = [
        round(d + (b - d) * k / (RAMP - 1)) for k in range(RAMP) for d, b in zip(wood.dark, wood.light, strict=True)
    ]
    return _indexed_png(index, ramp)


def plain_png(color: tuple[int, int, int]) -> bytes:
    """Return the PNG bytes of an image of one color."""
    return _indexed_png(np.zeros((8, 8), dtype=np.uint8), [*color])


def floor_png(tile: tuple[int, int, int], other: tuple[int, int, int], joint: tuple[int, int, int]) -> bytes:
    """Return the PNG bytes of a 2 x 2 checkerboard of floor tiles with thin joints, which is repeated.

    The image has 64 x 64 pixels; the joints are one pixel wide.

    Args:
        tile: RGB color of two tiles on a diagonal, each channel in 0..255.
        other: RGB color of the other two tiles, each channel in 0..255.
        joint: RGB color of the joints, each channel in 0..255.
    """
    half = 32
    index = np.zeros((2 * half, 2 * half), dtype=np.uint8)
    index[:half, half:] = index[half:, :half] = 1
    index[[0, half], :] = index[:, [0, half]] = 2
    return _indexed_png(index, [*tile, *other, *joint])


def _noise(rng: np.random.Generator, *, along: int, across: int) -> Floats:
    """Return smooth noise in 0..1 with the given number of cells along and across the grain."""
    grid = rng.random((across + 1, along + 1))
    # Bilinear interpolation of the grid, with smoothed weights.
    rows, row_weight = _cells(across)
    columns, column_weight = _cells(along)
    top = grid[rows][:, columns] * (1 - column_weight) + grid[rows][:, columns + 1] * column_weight
    bottom = grid[rows + 1][:, columns] * (1 - column_weight) + grid[rows + 1][:, columns + 1] * column_weight
    image: Floats = top * (1 - row_weight)[:, None] + bottom * row_weight[:, None]
    return image


def _cells(count: int) -> tuple[NDArray[np.int64], Floats]:
    """Return for each pixel its cell of `count`, and its smoothed position 0..1 in it."""
    position = np.arange(SIZE_PX) * (count / SIZE_PX)
    cell = np.floor(position).astype(np.int64)
    fraction = position - cell
    return cell, fraction * fraction * (3.0 - 2.0 * fraction)


def _indexed_png(index: NDArray[np.uint8], palette: list[int]) -> bytes:
    """Return the PNG bytes of an image of palette indices."""
    image = Image.fromarray(index, mode="P")
    # A long palette makes Pillow store whole bytes per pixel; Bullet reads no others.
    image.putpalette(palette + [0] * (3 * RAMP - len(palette)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", bits=8)
    return buffer.getvalue()
