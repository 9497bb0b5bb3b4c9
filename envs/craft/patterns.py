"""What is built: three patterns of seven blocks, one block a key step, in the order in which they are placed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT_M = 0.04
"""Edge of a cube; all other lengths here are multiples of it."""
SHAPES = {"cube": (1.0, 1.0, 1.0), "brick": (2.0, 1.0, 1.0), "plank": (3.2, 1.0, 0.5)}
"""full sizes in units; fingers close across the second"""
KEY_STEPS = 7


@dataclass(frozen=True)
class BlockPlace:
    """Where a block of a pattern goes: its center in units from the pattern's middle, and whether it lies across."""

    shape: str
    """a key of SHAPES"""
    x: float
    y: float
    z: float
    """of its center above the table"""
    across: bool = False
    """its long side lies along y instead of x"""

    def pose(self, middle: tuple[float, float], yaw: float) -> tuple[NDArray[np.float64], float]:
        """Return center [3] in meters and yaw for a pattern at `middle` that is rotated by `yaw` about z."""
        cos, sin = math.cos(yaw), math.sin(yaw)
        offset = np.array([cos * self.x - sin * self.y, sin * self.x + cos * self.y, self.z]) * UNIT_M
        return np.array([*middle, 0.0]) + offset, yaw + (math.pi / 2 if self.across else 0.0)


PATTERNS: dict[str, tuple[BlockPlace, ...]] = {
    # Two bricks a level, each level across the one below, and a cube on top.
    "tower": (
        BlockPlace("brick", 0, -0.55, 0.5),
        BlockPlace("brick", 0, 0.55, 0.5),
        BlockPlace("brick", -0.55, 0, 1.5, across=True),
        BlockPlace("brick", 0.55, 0, 1.5, across=True),
        BlockPlace("brick", 0, -0.55, 2.5),
        BlockPlace("brick", 0, 0.55, 2.5),
        BlockPlace("cube", 0, 0, 3.5),
    ),
    # Two pillars, a plank over them, and a cube on each of its ends.
    "gate": (
        BlockPlace("cube", -1.1, 0, 0.5),
        BlockPlace("cube", 1.1, 0, 0.5),
        BlockPlace("cube", -1.1, 0, 1.5),
        BlockPlace("cube", 1.1, 0, 1.5),
        BlockPlace("plank", 0, 0, 2.25),
        BlockPlace("cube", -1.0, 0, 3.0),
        BlockPlace("cube", 1.0, 0, 3.0),
    ),
    # A row of four, two over its middle, one on top.
    "pyramid": (
        BlockPlace("cube", -1.65, 0, 0.5),
        BlockPlace("cube", -0.55, 0, 0.5),
        BlockPlace("cube", 0.55, 0, 0.5),
        BlockPlace("cube", 1.65, 0, 0.5),
        BlockPlace("cube", -0.55, 0, 1.5),
        BlockPlace("cube", 0.55, 0, 1.5),
        BlockPlace("cube", 0, 0, 2.5),
    ),
}

INSTRUCTIONS = {
    "tower": ("build a tower", "stack the bricks crosswise to a tower", "make a tower of crossed bricks"),
    "gate": ("build a gate", "build a gate with a plank on two pillars", "make a gate of the blocks"),
    "pyramid": ("build a pyramid", "stack the cubes to a pyramid", "make a pyramid of the cubes"),
}


def block_edges(shape: str) -> tuple[float, float, float]:
    """Return the full edges of a block in meters."""
    x, y, z = SHAPES[shape]
    return x * UNIT_M, y * UNIT_M, z * UNIT_M
