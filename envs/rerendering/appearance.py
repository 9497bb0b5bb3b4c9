"""All that a re-rendered video does not take from its recording: materials, light, camera, objects and robot.

The camera stays in front of the table or at its right end, as far away as its field of view needs to show the table.
Blocks keep their places but get other colors, shapes and sizes; their colors stand out from the table's.

A labeled recording keeps more: CALVIN's camera, robot and blocks, whose colors stay what instructions call them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..cameras import INTRINSICS, STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET, STATIC_CAMERA_UP
from ..scene import SCENES, Vector
from .textures import Color, Texture, sample_color, sample_texture

Shape = Literal["box", "cylinder"]
PANDA = "panda"
MIDDLE = (0.0, -0.02, 0.44)
"""of the table top, which the camera is directed at"""
AZIMUTH = (-1.5, 0.0)
"""of the camera about `MIDDLE`, radians: 0 is the right end of the table, -pi/2 its front"""
ELEVATION = (0.35, 0.95)
FOV_DEG = (8.0, 42.0)
VISIBLE_M = (0.36, 0.52)
"""from the middle of the image to its border, at the distance of the table"""
CONTRAST = 0.35
"""smallest distance, in RGB, between the colors of a block and of the table"""
BLOCKS = 3
NAMED_COLORS = {
    "red": ((-0.02, 0.8, 0.8), (0.015, 1.0, 1.0)),
    "blue": ((0.59, 0.75, 0.75), (0.68, 1.0, 1.0)),
    "pink": ((0.82, 0.5, 0.8), (0.9, 1.0, 1.0)),
}
"""what may be called so: lowest and highest hue, saturation and value; CALVIN's pink is magenta"""


@dataclass(frozen=True)
class BlockAppearance:
    """What replaces a block: the size is a factor of its edges."""

    shape: Shape
    color: Color
    size: float


@dataclass(frozen=True)
class Distractor:
    """An object that no recording knows: full edges, center and yaw."""

    shape: Shape
    color: Color
    edges: Vector
    center: Vector
    yaw: float


@dataclass(frozen=True)
class CameraPlace:
    """Pose and field of view of the camera."""

    position: Vector
    up: Vector
    target: Vector
    fov_deg: float


@dataclass(frozen=True)
class Lighting:
    """One far light, and PyBullet's weights of what it adds."""

    direction: Vector
    color: Color
    ambient: float
    diffuse: float
    specular: float


@dataclass(frozen=True)
class Appearance:
    """One sampled appearance."""

    embodiment: str
    """"panda", or a name of `other_robots.arm.HOME`"""
    arm_seed: int
    """of the place and size of another arm"""
    robot_colors: tuple[Color, Color, Color]
    """of its materials"""
    floor: Texture
    wall: Texture
    table: Texture
    furniture: Texture
    """of doors and drawer"""
    fittings: Color
    """of button, lever and handles"""
    blocks: tuple[BlockAppearance, ...]
    """in scene order"""
    distractors: tuple[Distractor, ...]
    camera: CameraPlace
    light: Lighting


def sample_appearance(rng: np.random.Generator, *, embodiments: Sequence[str]) -> Appearance:
    """Return a random appearance.

    Args:
        rng: generator of all random choices.
        embodiments: names to choose from.
    """
    table = sample_texture(rng)
    table_color = (np.array(table.dark) + np.array(table.light)) / 2
    return Appearance(
        embodiment=embodiments[int(rng.integers(len(embodiments)))],
        arm_seed=int(rng.integers(2**32)),
        robot_colors=(_sample_robot_color(rng), _sample_robot_color(rng), _sample_robot_color(rng)),
        floor=sample_texture(rng),
        wall=sample_texture(rng),
        table=table,
        furniture=sample_texture(rng),
        fittings=sample_color(rng, saturation=float(rng.uniform(0, 1))),
        blocks=tuple(_sample_block(rng, table_color.tolist()) for _ in range(BLOCKS)),
        distractors=tuple(_sample_distractor(rng) for _ in range(int(rng.integers(0, 6)))),
        camera=_sample_camera(rng),
        light=_sample_light(rng),
    )


def sample_scene_appearance(rng: np.random.Generator, scene: str) -> Appearance:
    """Return a random appearance of a scene that CALVIN's instructions describe and its static camera sees.

    Args:
        rng: generator of all random choices.
        scene: "A", "B", "C" or "D".
    """
    colors = [_sample_named_color(rng, name) for name, _ in SCENES[scene].blocks]
    shade, dark_shade = rng.uniform((0.75, 0.2), (1.0, 0.5)).tolist()
    return Appearance(
        embodiment=PANDA,
        arm_seed=0,
        robot_colors=((shade,) * 3, (dark_shade,) * 3, (shade,) * 3),
        floor=sample_texture(rng),
        wall=sample_texture(rng),
        table=_sample_background(rng, colors),
        furniture=_sample_background(rng, colors),
        fittings=sample_color(rng, saturation=float(rng.uniform(0, 0.5))),  # grayer than any block
        blocks=tuple(BlockAppearance("box", color, 1.0) for color in colors),
        distractors=(),
        camera=CameraPlace(
            STATIC_CAMERA_POSITION, STATIC_CAMERA_UP, STATIC_CAMERA_TARGET, INTRINSICS["static"].fov_deg
        ),
        light=_sample_light(rng),
    )


def _sample_named_color(rng: np.random.Generator, name: str) -> Color:
    """Return a color that people call so."""
    hue, saturation, value = rng.uniform(*NAMED_COLORS[name]).tolist()
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _sample_background(rng: np.random.Generator, colors: Sequence[Color]) -> Texture:
    """Return a texture of which neither color is near one of these."""
    while True:
        texture = sample_texture(rng)
        if min(math.dist(color, part) for color in colors for part in (texture.dark, texture.light)) >= CONTRAST:
            return texture


def _sample_light(rng: np.random.Generator) -> Lighting:
    return Lighting(
        direction=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 0.3)), float(rng.uniform(0.5, 1.5))),
        color=_sample_vector(rng, (0.85,) * 3, (1.0,) * 3),
        ambient=float(rng.uniform(0.45, 0.7)),
        diffuse=float(rng.uniform(0.25, 0.55)),
        specular=float(rng.uniform(0.0, 0.1)),
    )


def _sample_robot_color(rng: np.random.Generator) -> Color:
    """Return the color of one material: gray in half of the cases."""
    return sample_color(rng, saturation=float(max(0.0, rng.uniform(-0.8, 0.8))))


def _sample_block(rng: np.random.Generator, table: Sequence[float]) -> BlockAppearance:
    """Return a block whose color is not the table's."""
    while math.dist(color := sample_color(rng, saturation=1.0), table) < CONTRAST:
        pass
    return BlockAppearance("box" if rng.random() < 0.7 else "cylinder", color, float(rng.uniform(0.85, 1.25)))


def _sample_distractor(rng: np.random.Generator) -> Distractor:
    """Return a small object at an end of the table, or a larger one on the floor beside or behind it."""
    shape: Shape = "box" if rng.random() < 0.5 else "cylinder"
    color = sample_color(rng, saturation=1.0)
    yaw = float(rng.uniform(0, math.pi))
    side = -1 if rng.random() < 0.5 else 1
    if rng.random() < 0.5:
        edges = _sample_vector(rng, (0.03, 0.03, 0.03), (0.06, 0.06, 0.12))
        x = side * rng.uniform(0.39, 0.41)
        return Distractor(shape, color, edges, (x, float(rng.uniform(-0.15, 0.0)), MIDDLE[2] + edges[2] / 2), yaw)
    edges = _sample_vector(rng, (0.08, 0.08, 0.2), (0.3, 0.3, 0.8))
    if rng.random() < 0.5:
        place = (side * float(rng.uniform(0.65, 0.9)), float(rng.uniform(0.0, 0.5)))
    else:
        place = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.45, 0.8)))
    return Distractor(shape, color, edges, (*place, edges[2] / 2), yaw)


def _sample_camera(rng: np.random.Generator) -> CameraPlace:
    """Return a camera that shows the table."""
    target = _sample_vector(rng, np.subtract(MIDDLE, 0.05).tolist(), np.add(MIDDLE, 0.05).tolist())
    azimuth = rng.uniform(*AZIMUTH)
    elevation = rng.uniform(*ELEVATION)
    fov_deg = float(rng.uniform(*FOV_DEG))
    distance = rng.uniform(*VISIBLE_M) / math.tan(math.radians(fov_deg / 2))
    ahead = np.array(
        [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
    )
    x, y, z = (np.array(target) + distance * ahead).tolist()
    return CameraPlace((x, y, z), _sample_vector(rng, (-0.08, -0.08, 1), (0.08, 0.08, 1)), target, fov_deg)


def _sample_vector(rng: np.random.Generator, low: Sequence[float], high: Sequence[float]) -> Vector:
    x, y, z = rng.uniform(low, high).tolist()
    return x, y, z
