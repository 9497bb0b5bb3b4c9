"""Flat faces cut into the triangles that a software renderer draws fastest, as seen from the static camera.

PyBullet's TinyRenderer tests every pixel in the upright bounding box of each triangle that faces the camera (30 ns
each) and pays a fixed price per triangle (170 ns); a board that lies askew in the image, cut along the wrong
diagonal, fills four times its area with boxes. Here each parallelogram becomes the grid of cells, and each cell is cut
along the diagonal, that cost least. Faces are listed from near to far, so that what is hidden is not shaded first. Only
the triangles change: corners, texture and normals stay where they were.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cameras import INTRINSICS, STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET, STATIC_CAMERA_UP
from .meshes import Face, Point, polygon_normal

PIXEL_NS = 30.0
TRIANGLE_NS = 170.0
MOST_CELLS = 8  # along one edge

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """The static camera in the frame of a mesh: unit vectors, and pixels per unit of length near the table."""

    right: Vector
    up: Vector
    to_camera: Vector
    pixels: float


def static_view(*, turn: float, scale: float) -> View:
    """The view of a link whose frame is turned by `turn` rad about the world's x axis and enlarged `scale` times."""
    to_camera = np.subtract(STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET)
    distance = float(np.linalg.norm(to_camera))
    to_camera = to_camera / distance
    right = np.cross(STATIC_CAMERA_UP, to_camera)
    right /= np.linalg.norm(right)
    sine, cosine = math.sin(turn), math.cos(turn)
    to_link = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    rows: list[Vector] = [to_link @ axis for axis in (right, np.cross(to_camera, right), to_camera)]
    return View(rows[0], rows[1], rows[2], INTRINSICS["static"].focal_px / distance * scale)


def tessellate(faces: Sequence[Face], view: View) -> list[Face]:
    """The triangles of all faces, nearest first."""
    triangles = [triangle for face in faces for triangle in _cut(face, view)]
    # rounded, so that no machine's last bit decides the order
    return sorted(triangles, key=lambda face: round(-float(np.mean(face[0], axis=0) @ view.to_camera), 6))


def _cut(face: Face, view: View) -> list[Face]:
    corners = np.array(face[0])
    is_parallelogram = len(corners) == 4 and np.allclose(corners[0] + corners[2], corners[1] + corners[3], atol=1e-9)
    if not is_parallelogram or float(np.array(polygon_normal(face[0])) @ view.to_camera) <= 0:
        return [_pick(face, (0, k, k + 1)) for k in range(1, len(corners) - 1)]
    edges = corners[1] - corners[0], corners[3] - corners[0]
    across, along, is_falling = min(
        itertools.product(range(1, MOST_CELLS + 1), range(1, MOST_CELLS + 1), (False, True)),
        key=lambda choice: round(_cost(edges, choice, view), 3),
    )
    triangles = []
    for i, j in itertools.product(range(across), range(along)):
        part = cell(face, (i / across, (i + 1) / across), (j / along, (j + 1) / along))
        for chosen in ((0, 1, 3), (1, 2, 3)) if is_falling else ((0, 1, 2), (0, 2, 3)):
            triangles.append(_pick(part, chosen))
    return triangles


def _cost(edges: tuple[Vector, Vector], choice: tuple[int, int, bool], view: View) -> float:
    """Nanoseconds of a face cut into across x along cells along the rising (0-2) or the falling (1-3) diagonal."""
    across, along, is_falling = choice
    a, b = edges[0] / across, edges[1] / along
    triangle = (np.zeros(3), a, b) if is_falling else (np.zeros(3), a, a + b)
    spans = [[float(corner @ axis) * view.pixels for corner in triangle] for axis in (view.right, view.up)]
    pixels = math.prod(max(span) - min(span) + 1 for span in spans)
    return 2 * across * along * (TRIANGLE_NS + PIXEL_NS * pixels)


def cell(face: Face, across: tuple[float, float], along: tuple[float, float]) -> Face:
    """The part of a parallelogram between shares of its first edge and of its last one."""
    places = [(across[0], along[0]), (across[1], along[0]), (across[1], along[1]), (across[0], along[1])]
    points, uv = np.array(face[0]), np.array(face[1])

    def at(values: Vector, s: float, t: float) -> tuple[float, ...]:
        return tuple(float(v) for v in values[0] + s * (values[1] - values[0]) + t * (values[3] - values[0]))

    return [_point(at(points, s, t)) for s, t in places], [(u, v) for u, v in (at(uv, s, t) for s, t in places)]


def _point(values: tuple[float, ...]) -> Point:
    x, y, z = values
    return x, y, z


def _pick(face: Face, chosen: tuple[int, ...]) -> Face:
    return [face[0][k] for k in chosen], [face[1][k] for k in chosen]
