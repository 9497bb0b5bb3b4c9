"""Triangle meshes of the built-in scenes: boxes, prisms, convex hulls, and their OBJ and URDF text.

The lowest layer of the asset generator (`make_assets`): arithmetic on small arrays and strings, so that a generated
file is a pure function of the numbers in `tables.py`, `panda.py` and `other_robots.py`. Lengths are meters in the frame
of the link. This is not a general mesh library: it has no topology and reads only the OBJ files of `pybullet_data`.

Sums are written out instead of using matrix products, because that gives the same bits on every machine, and thereby
the same files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Triangles = NDArray[np.int64]
Point = tuple[float, float, float]
Face = tuple[list[Point], list[tuple[float, float]]]  # corners and their texture coordinates

BOX_QUADS = {
    "-x": (0, 4, 6, 2), "+x": (1, 3, 7, 5),
    "-y": (0, 1, 5, 4), "+y": (2, 6, 7, 3),
    "-z": (0, 2, 3, 1), "+z": (4, 5, 7, 6),
}  # fmt: skip


@dataclass
class Mesh:
    """Flat-shaded polygons with texture coordinates; grows by the `add_*` methods.

    `grain` is the number of textures per meter, so that wood has the same scale on every board.
    """

    grain: float = 1.0
    polygons: list[Face] = field(default_factory=list)

    def add_polygon(self, corners: Sequence[Point], *, grain_axis: int | None = None) -> None:
        """Add one planar convex polygon, corners counter-clockwise seen from outside.

        `grain_axis` is the axis (0, 1, 2) along which the grain of the wood runs; None: the longest one.
        """
        points = np.asarray(corners, dtype=np.float64)
        # u runs along the grain, v along the longer of the two other axes.
        spans = points.max(axis=0) - points.min(axis=0)
        axis = int(np.argmax(spans)) if grain_axis is None else grain_axis
        if spans[axis] < 1e-9:
            axis = int(np.argmax(spans))
        others = [k for k in range(3) if k != axis]
        across = max(others, key=lambda k: float(spans[k]))
        # Each face shows its own part of the texture, which depends on the number of faces before it.
        seed = 0.37 * len(self.polygons)
        along_uv = _fold((points[:, axis] - points[:, axis].min()) * self.grain, seed)
        across_uv = _fold((points[:, across] - points[:, across].min()) * self.grain, 0.61 * seed)
        uv = [(float(u), float(v)) for u, v in zip(along_uv, across_uv, strict=True)]
        self.polygons.append(([(float(x), float(y), float(z)) for x, y, z in points], uv))

    def add_box(self, low: Point, high: Point, *, grain_axis: int | None = None, hidden: Collection[str] = ()) -> None:
        """Add an axis-aligned box.

        Args:
            low: corner with the lowest x, y, z, in meters.
            high: corner with the highest x, y, z, in meters.
            grain_axis: axis (0, 1, 2) along which the grain of the wood runs; None: the longest side of the box.
            hidden: faces ("+z", "-x", ...) to leave out, because other parts always cover them.
        """
        if grain_axis is None:
            grain_axis = int(np.argmax(np.subtract(high, low)))
        corners = box_corners(low, high)
        for side, quad in BOX_QUADS.items():
            if side not in hidden:
                self.add_polygon([corners[k] for k in quad], grain_axis=grain_axis)

    def add_prism(self, outline: Sequence[tuple[float, float]], axis: int, start: float, end: float) -> None:
        """Extrude a convex outline along `axis` from `start` to `end`.

        Args:
            outline: corners in meters, counter-clockwise in the two other axes, taken in cyclic order (y, z; z, x; or
                x, y).
            axis: axis of the extrusion (0, 1, 2).
            start: coordinate of the lower end along `axis`, in meters.
            end: coordinate of the upper end along `axis`, in meters.
        """
        rings: list[list[Point]] = []
        for level in (start, end):
            ring: list[Point] = []
            for a, b in outline:
                point = [0.0, 0.0, 0.0]
                point[axis] = level
                point[(axis + 1) % 3] = a
                point[(axis + 2) % 3] = b
                ring.append((point[0], point[1], point[2]))
            rings.append(ring)
        self.add_polygon(rings[0][::-1])
        self.add_polygon(rings[1])
        for k in range(len(outline)):
            j = (k + 1) % len(outline)
            self.add_polygon([rings[0][k], rings[0][j], rings[1][j], rings[1][k]], grain_axis=axis)

    def obj(self, texture: str | None = None) -> str:
        """Return the mesh as OBJ text with one normal per polygon; `texture` names the .mtl file and its material."""
        lines = ["# Made by vw2_robot.envs.asset_tools.make_assets; do not edit."]
        if texture is not None:
            lines += [f"mtllib {texture}.mtl", f"usemtl {texture}"]
        vertex = 1
        for number, (points, uv) in enumerate(self.polygons, start=1):
            lines += [f"v {_number(x)} {_number(y)} {_number(z)}" for x, y, z in points]
            lines += [f"vt {_number(u)} {_number(v)}" for u, v in uv]
            lines.append("vn " + " ".join(_number(value) for value in polygon_normal(points)))
            # A fan of triangles around the first corner.
            for k in range(1, len(points) - 1):
                lines.append("f " + " ".join(f"{v}/{v}/{number}" for v in (vertex, vertex + k, vertex + k + 1)))
            vertex += len(points)
        return "\n".join(lines) + "\n"


def _fold(lengths: Floats, seed: float) -> Floats:
    """Return texture coordinates inside [0, 1], with an offset that depends on `seed`."""
    # A face that is longer than one texture gets that texture stretched over it.
    span = min(float(lengths.max()), 1.0)
    scaled = lengths * (span / float(lengths.max())) if lengths.max() > 0 else lengths
    return scaled + (seed % 1.0) * (1.0 - span)


def _number(value: float) -> str:
    """Return a number as text with at most five decimals, never as -0."""
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def number_list(values: Sequence[float]) -> str:
    """Return numbers as text for a URDF attribute, to 1e-9."""
    return " ".join(f"{value + 0.0:.9f}".rstrip("0").rstrip(".") or "0" for value in values).replace("-0 ", "0 ")


def box_corners(low: Point, high: Point) -> list[Point]:
    """Return the eight corners; bit 0 of the index selects x, bit 1 y, bit 2 z."""
    return [
        (high[0] if k & 1 else low[0], high[1] if k & 2 else low[1], high[2] if k & 4 else low[2]) for k in range(8)
    ]


def polygon_normal(points: Sequence[Point]) -> Point:
    """Return the unit normal of a planar polygon (Newell's method), or +z for a degenerate one."""
    x = y = z = 0.0
    for (ax, ay, az), (bx, by, bz) in zip(points, [*points[1:], points[0]], strict=True):
        x += (ay - by) * (az + bz)
        y += (az - bz) * (ax + bx)
        z += (ax - bx) * (ay + by)
    length = (x * x + y * y + z * z) ** 0.5
    return (x / length, y / length, z / length) if length > 1e-12 else (0.0, 0.0, 1.0)


def chamfered(width: float, height: float, cut: float) -> list[tuple[float, float]]:
    """Return the outline of a rectangle around the origin with its corners cut off, for `Mesh.add_prism`.

    Args:
        width: side along the first axis of the outline, in meters.
        height: side along the second axis of the outline, in meters.
        cut: length that each corner takes from both of its sides, in meters.

    Returns:
        Eight corners in meters, counter-clockwise.
    """
    x = width / 2
    y = height / 2
    return [
        (x, -y + cut),
        (x, y - cut),
        (x - cut, y),
        (-x + cut, y),
        (-x, y - cut),
        (-x, -y + cut),
        (-x + cut, -y),
        (x - cut, -y),
    ]


def regular(sides: int, radius: float) -> list[tuple[float, float]]:
    """Return the outline of a regular polygon, counter-clockwise."""
    angles = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    return [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles]


def smooth_obj(vertices: Floats, triangles: Triangles) -> str:
    """Return the OBJ text of an indexed mesh with area-weighted vertex normals."""
    corners = vertices[triangles]
    # Length of each is twice the area of its triangle.
    facets = cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], facets)
    # The sum of the cross products is weighted by area already.
    lengths = np.sqrt(normals[:, 0] ** 2 + normals[:, 1] ** 2 + normals[:, 2] ** 2)
    normals /= np.maximum(lengths, 1e-15)[:, None]
    lines = ["# Made by vw2_robot.envs.asset_tools.make_assets; do not edit."]
    lines += [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in vertices]
    lines += [f"vn {x:.2f} {y:.2f} {z:.2f}" for x, y, z in normals]
    lines += ["f " + " ".join(f"{k}//{k}" for k in row) for row in (triangles + 1).tolist()]
    return "\n".join(lines).replace("-0.0000", "0.0000").replace("-0.00 ", "0.00 ") + "\n"


def cross(a: Floats, b: Floats) -> Floats:
    """Return the row-wise cross product, written out (same bits on every machine)."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )


def convex_hull(points: Floats) -> Triangles:
    """Return the outward triangles of the convex hull of a few hundred points, by adding one point after another."""
    # Begin with a tetrahedron: each corner is the farthest point from those before it.
    first = int(np.argmin(points[:, 0]))
    second = int(np.argmax(((points - points[first]) ** 2).sum(axis=1)))
    edge = np.broadcast_to(points[second] - points[first], points.shape)
    third = int(np.argmax((cross(edge, points - points[first]) ** 2).sum(axis=1)))
    heights = [abs(_height(points, (first, second, third), point)) for point in points]
    seeds = [first, second, third, int(np.argmax(heights))]
    center = points[seeds].sum(axis=0) / 4
    faces = []
    for i, j, k in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
        a, b, c = seeds[i], seeds[j], seeds[k]
        # The center must be below the face; otherwise the other winding.
        faces.append((a, b, c) if _height(points, (a, b, c), center) < 0 else (a, c, b))
    for index in range(len(points)):
        visible = [face for face in faces if _height(points, face, points[index]) > 1e-9]
        if not visible:
            continue
        # The faces that the new point sees are replaced by triangles from their rim to the point.
        edges = {edge for face in visible for edge in zip(face, (*face[1:], face[0]), strict=True)}
        rim = sorted(edge for edge in edges if (edge[1], edge[0]) not in edges)
        faces = [face for face in faces if face not in visible] + [(a, b, index) for a, b in rim]
    return np.array(faces, dtype=np.int64)


def _height(points: Floats, face: tuple[int, int, int], point: Floats) -> float:
    """Return the signed distance of a point from the plane of a face."""
    normal = polygon_normal([tuple(points[k].tolist()) for k in face])
    offset = point - points[face[0]]
    return float(normal[0] * offset[0] + normal[1] * offset[1] + normal[2] * offset[2])


def read_obj(path: Path) -> tuple[Floats, Triangles, list[str]]:
    """Return vertices [N, 3], triangles [M, 3] and the material name of each triangle of an OBJ file."""
    vertices: list[list[float]] = []
    triangles: list[list[int]] = []
    materials: list[str] = []
    name = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if not fields:
            continue
        if fields[0] == "v":
            vertices.append([float(text) for text in fields[1:4]])
        elif fields[0] == "usemtl":
            name = fields[1]
        elif fields[0] == "f":
            corners = [int(text.split("/")[0]) - 1 for text in fields[1:]]
            for k in range(1, len(corners) - 1):  # a fan of triangles
                triangles.append([corners[0], corners[k], corners[k + 1]])
                materials.append(name)
    return np.array(vertices, dtype=np.float64), np.array(triangles, dtype=np.int64), materials
