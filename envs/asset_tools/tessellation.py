"""Tessellation: flat faces cut into the triangles that a software renderer renders fastest from the static camera.

PyBullet's TinyRenderer tests every pixel in the upright bounding box of each triangle that faces the camera (30 ns
each) and has a fixed cost per triangle (170 ns). A board that lies askew in the image, cut along the wrong diagonal,
fills four times its area with boxes. Here each parallelogram becomes the grid of cells, and each cell is cut along the
diagonal, that cost least. Faces are listed from near to far, so that hidden pixels are not shaded first. Only the
triangles change: corners, texture and normals stay where they were.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cameras import INTRINSICS, STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET, STATIC_CAMERA_UP
from .meshes import Face, polygon_normal

PIXEL_NS = 30.0
TRIANGLE_NS = 170.0
MAX_CELLS = 8  # along one edge

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """The static camera in the frame of a mesh: unit vectors, and pixels per unit of length near the table."""

    right: Vector
    up: Vector
    to_camera: Vector
    pixels: float


def static_view(*, rotation: float, scale: float) -> View:
    """Return the view of a link whose frame is rotated by `rotation` rad about the world's x axis and scaled."""
    to_camera = np.subtract(STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET)
    distance = float(np.linalg.norm(to_camera))
    to_camera = to_camera / distance
    # An orthonormal frame of the camera, as computeViewMatrix makes it.
    right = np.cross(STATIC_CAMERA_UP, to_camera)
    right /= np.linalg.norm(right)
    sine = math.sin(rotation)
    cosine = math.cos(rotation)
    to_link = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    rows: list[Vector] = [to_link @ axis for axis in (right, np.cross(to_camera, right), to_camera)]
    return View(rows[0], rows[1], rows[2], INTRINSICS["static"].focal_px / distance * scale)


def tessellate(faces: Sequence[Face], view: View) -> list[Face]:
    """Return the triangles of all faces, nearest first."""
    triangles = [triangle for face in faces for triangle in _cut(face, view)]
    # Rounded, so that the last bit, which differs between machines, does not decide the order.
    return sorted(triangles, key=lambda face: round(-float(np.mean(face[0], axis=0) @ view.to_camera), 6))


def _cut(face: Face, view: View) -> list[Face]:
    """Return the triangles of a face; only a parallelogram that faces the camera is optimized."""
    corners = np.array(face[0])
    # Only parallelograms can be cut into a grid without moving the texture.
    is_parallelogram = len(corners) == 4 and np.allclose(corners[0] + corners[2], corners[1] + corners[3], atol=1e-9)
    if not is_parallelogram or float(np.array(polygon_normal(face[0])) @ view.to_camera) <= 0:
        return [_pick(face, (0, k, k + 1)) for k in range(1, len(corners) - 1)]
    edges = corners[1] - corners[0], corners[3] - corners[0]
    # Exhaustive search; 128 choices per face. Rounded, so that all machines choose the same.
    across, along, is_falling = min(
        itertools.product(range(1, MAX_CELLS + 1), range(1, MAX_CELLS + 1), (False, True)),
        key=lambda choice: round(_cost(edges, choice, view), 3),
    )
    triangles = []
    for i, j in itertools.product(range(across), range(along)):
        part = cell(face, (i / across, (i + 1) / across), (j / along, (j + 1) / along))
        for chosen in ((0, 1, 3), (1, 2, 3)) if is_falling else ((0, 1, 2), (0, 2, 3)):
            triangles.append(_pick(part, chosen))
    return triangles


def _cost(edges: tuple[Vector, Vector], choice: tuple[int, int, bool], view: View) -> float:
    """Return the nanoseconds of a face that is cut into cells along the rising (0-2) or the falling (1-3) diagonal."""
    across, along, is_falling = choice
    a = edges[0] / across
    b = edges[1] / along
    # All cells are congruent, so the box of one triangle stands for all.
    triangle = (np.zeros(3), a, b) if is_falling else (np.zeros(3), a, a + b)
    spans = [[float(corner @ axis) * view.pixels for corner in triangle] for axis in (view.right, view.up)]
    pixels = math.prod(max(span) - min(span) + 1 for span in spans)
    return 2 * across * along * (TRIANGLE_NS + PIXEL_NS * pixels)


def cell(face: Face, across: tuple[float, float], along: tuple[float, float]) -> Face:
    """Return the part of a parallelogram between fractions of its first edge and of its last one.

    Args:
        face: four corners and their texture coordinates.
        across: (start, end) along the edge from corner 0 to corner 1, fractions in [0, 1].
        along: (start, end) along the edge from corner 0 to corner 3, fractions in [0, 1].

    Returns:
        The four corners of the part and their texture coordinates, in the order of the corners of `face`.
    """
    places = [(across[0], along[0]), (across[1], along[0]), (across[1], along[1]), (across[0], along[1])]

    def at(values: Vector, s: float, t: float) -> list[float]:
        return [float(v) for v in values[0] + s * (values[1] - values[0]) + t * (values[3] - values[0])]

    points = [at(np.array(face[0]), s, t) for s, t in places]
    uv = [at(np.array(face[1]), s, t) for s, t in places]
    return [(x, y, z) for x, y, z in points], [(u, v) for u, v in uv]


def _pick(face: Face, chosen: tuple[int, ...]) -> Face:
    """Return the face of some corners."""
    return [face[0][k] for k in chosen], [face[1][k] for k in chosen]
