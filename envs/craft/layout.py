"""What differs between two episodes of block building: world, camera, light, colors, and where the blocks lie.

Test worlds share none of these with training worlds: the camera stands elsewhere, table and wall have other patterns
and tones, and the blocks other colors, as the test set of Video-CraftBench differs from its training set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..rerendering.textures import Color, Pattern, Texture
from .patterns import PATTERNS

World = Literal["training", "test"]
HUMAN_HAND = "hand"
Vector = tuple[float, float, float]

COLORS: dict[World, tuple[Color, ...]] = {
    "training": (
        (0.84, 0.12, 0.12),
        (0.12, 0.58, 0.22),
        (0.13, 0.30, 0.82),
        (0.95, 0.80, 0.12),
        (0.94, 0.50, 0.10),
        (0.52, 0.20, 0.66),
        (0.94, 0.94, 0.92),
    ),
    "test": (
        (0.10, 0.72, 0.74),
        (0.90, 0.30, 0.62),
        (0.62, 0.82, 0.16),
        (0.16, 0.18, 0.40),
        (0.48, 0.28, 0.14),
        (0.98, 0.68, 0.58),
        (0.40, 0.44, 0.46),
    ),
}
TABLES: dict[World, tuple[Color, ...]] = {
    "training": ((0.80, 0.76, 0.70), (0.58, 0.60, 0.63), (0.72, 0.56, 0.40), (0.50, 0.60, 0.55)),
    "test": ((0.62, 0.52, 0.66), (0.86, 0.84, 0.62), (0.46, 0.60, 0.74)),
}
WALLS: dict[World, tuple[Color, ...]] = {
    "training": ((0.88, 0.87, 0.84), (0.62, 0.68, 0.74), (0.52, 0.50, 0.50)),
    "test": ((0.78, 0.60, 0.52), (0.42, 0.52, 0.44), (0.90, 0.82, 0.90)),
}
TEXTURES: dict[World, tuple[Pattern, ...]] = {"training": ("plain", "noise", "wood"), "test": ("stripes", "checks")}
AZIMUTHS: dict[World, tuple[float, float]] = {"training": (-0.7, 0.7), "test": (0.9, 1.5)}
"""of the camera about the middle, radians, at 0 facing the arm; those of test worlds on both sides"""
HEIGHTS_M: dict[World, tuple[float, float]] = {"training": (0.34, 0.42), "test": (0.43, 0.50)}
SKINS: tuple[Color, ...] = ((0.93, 0.76, 0.65), (0.80, 0.60, 0.46), (0.58, 0.40, 0.28), (0.38, 0.25, 0.18))
SLEEVES: dict[World, tuple[Color, ...]] = {
    "training": ((0.20, 0.24, 0.36), (0.62, 0.64, 0.66), (0.48, 0.14, 0.16)),
    "test": ((0.14, 0.38, 0.30), (0.86, 0.84, 0.78), (0.30, 0.20, 0.36)),
}
MIDDLE = (0.47, 0.0)
SIDES_M = ((0.375, 0.115), (0.575, 0.225))
"""where blocks lie, on both sides of the pattern: x and distance from the middle line, low and high"""
SPACING_M = 0.072
"""smallest distance between the centers of two blocks; a plank counts as a point, since its neighbors are cubes"""
PLACES_TRIED = 20
"""of a block, before the others are moved"""
LARGEST_YAW = math.pi / 4


@dataclass(frozen=True)
class LooseBlock:
    """One block at the start: shape, color, position in the plane [2] and yaw."""

    shape: str
    color: Color
    xy: tuple[float, float]
    yaw: float


@dataclass(frozen=True)
class CraftLayout:
    """Everything that differs between the starts of two episodes; colors are RGB in 0..1."""

    pattern: str
    """a key of PATTERNS"""
    embodiment: str
    """"hand", or a key of `other_robots.arm.HOME`"""
    world: World
    blocks: tuple[LooseBlock, ...]
    """in the order in which they are placed"""
    middle: tuple[float, float]
    """of the pattern"""
    yaw: float
    """of the pattern"""
    tool_position: Vector
    """at the start and at the end"""
    table: Texture
    wall: Texture
    skin: Color
    sleeve: Color
    elbow: float
    """azimuth from the hand to its elbow"""
    camera_position: Vector
    camera_target: Vector
    fov_deg: float
    light: Vector


def sample_craft_layout(
    rng: np.random.Generator, *, pattern: str, embodiments: Sequence[str], world: World
) -> CraftLayout:
    """Return a random layout.

    Args:
        rng: generator of all random choices.
        pattern: what is built.
        embodiments: names to choose from, "hand" or keys of `other_robots.arm.HOME`.
        world: whose colors, textures and cameras are used.
    """
    low, high = AZIMUTHS[world]
    azimuth = rng.uniform(low, high) * (1 if world == "training" or rng.random() < 0.5 else -1)
    distance = rng.uniform(0.50, 0.56)
    target = (MIDDLE[0] + rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), 0.05)
    middle = (MIDDLE[0] + rng.uniform(-0.015, 0.015), rng.uniform(-0.015, 0.015))
    return CraftLayout(
        pattern=pattern,
        embodiment=embodiments[int(rng.integers(len(embodiments)))],
        world=world,
        blocks=_sample_blocks(rng, pattern, world, middle),
        middle=middle,
        # Its row runs from left to right in the image, more or less.
        yaw=_folded(azimuth + math.pi / 2 + rng.uniform(-0.25, 0.25)),
        tool_position=(MIDDLE[0] + rng.uniform(-0.1, 0.0), rng.uniform(-0.16, 0.16), rng.uniform(0.22, 0.27)),
        table=_sample_surface(rng, TABLES[world], TEXTURES[world]),
        wall=_sample_surface(rng, WALLS[world], TEXTURES[world]),
        skin=SKINS[int(rng.integers(len(SKINS)))],
        sleeve=SLEEVES[world][int(rng.integers(len(SLEEVES[world])))],
        # To the right of the camera's view, as of a person who sits beside the camera.
        elbow=azimuth + rng.uniform(1.0, 1.5),
        camera_position=(
            target[0] + distance * math.cos(azimuth),
            target[1] + distance * math.sin(azimuth),
            rng.uniform(*HEIGHTS_M[world]),
        ),
        camera_target=target,
        fov_deg=rng.uniform(46.0, 50.0),
        light=(rng.uniform(0.2, 1.0), rng.uniform(-0.8, 0.8), 1.4),
    )


def _sample_blocks(
    rng: np.random.Generator, pattern: str, world: World, middle: tuple[float, float]
) -> tuple[LooseBlock, ...]:
    """Return the blocks at random places beside the pattern, by rejection sampling.

    Of blocks of one shape the nearest to the pattern is placed first: what happens next can be seen.
    """
    places = PATTERNS[pattern]
    colors = rng.permutation(len(COLORS[world])).tolist()
    # Block by block, the two sides in turn; where none fits any more, all over again.
    xy = np.zeros((0, 2))
    while len(xy) < len(places):
        sampled = rng.uniform(*SIDES_M, size=(PLACES_TRIED, 2)) * [1.0, 1.0 if len(xy) % 2 else -1.0]
        fits = (np.linalg.norm(sampled[:, None] - xy, axis=2) >= SPACING_M).all(axis=1)
        xy = np.concatenate([xy, sampled[fits][:1]]) if fits.any() else np.zeros((0, 2))
    near_first = np.argsort(np.linalg.norm(xy - middle, axis=1), kind="stable")
    blocks = []
    for place, index in zip(places, near_first.tolist(), strict=True):
        yaw = float(rng.uniform(-LARGEST_YAW, LARGEST_YAW)) * (0.4 if place.shape == "plank" else 1.0)
        x, y = xy[index].tolist()
        blocks.append(LooseBlock(place.shape, COLORS[world][colors[index]], (x, y), yaw))
    return tuple(blocks)


def _sample_surface(rng: np.random.Generator, tones: Sequence[Color], patterns: Sequence[Pattern]) -> Texture:
    """Return a texture of one of these tones and patterns; its second color is near the first."""
    dark, light = tones[int(rng.integers(len(tones)))], rng.uniform(0.78, 1.1)
    red, green, blue = np.clip(np.array(dark) * light, 0, 1).tolist()
    return Texture(
        pattern=patterns[int(rng.integers(len(patterns)))],
        dark=dark,
        light=(red, green, blue),
        cells=float(rng.uniform(3, 8)),
        angle=float(rng.uniform(0, math.pi)),
        seed=int(rng.integers(2**32)),
    )


def _folded(angle: float) -> float:
    """Return the angle equal to `angle` modulo pi that is nearest to 0; every pattern is symmetric."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2
