"""Fewer triangles for a visual mesh: TinyRenderer's cost is per triangle, not per pixel.

Two passes. Vertex clustering merges everything inside a cell of a few millimeters; then edges are collapsed in order of
their quadric error (Garland and Heckbert 1997) until the wanted number of triangles is left. All sums are written out
in a fixed order, so a mesh comes out the same on every machine.
"""

from __future__ import annotations

import heapq

import numpy as np

from .meshes import Floats, Triangles, convex_hull, cross

Quadric = tuple[float, ...]  # upper triangle of the symmetric 4 x 4 matrix: aa ab ac ad bb bc bd cc cd dd


def decimate(vertices: Floats, triangles: Triangles, *, target: int, cell_m: float = 0.004) -> tuple[Floats, Triangles]:
    """At most `target` triangles that stay close to the given surface."""
    vertices, triangles = cluster(vertices, triangles, cell_m=cell_m)
    return collapse(vertices, triangles, target=target)


def cluster(vertices: Floats, triangles: Triangles, *, cell_m: float) -> tuple[Floats, Triangles]:
    """Merge the vertices of each cell of a grid into their mean; drop triangles that vanish."""
    cells = np.floor(vertices / cell_m).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    group = group.reshape(-1)
    counts = np.bincount(group).astype(np.float64)
    merged = np.stack([np.bincount(group, weights=vertices[:, k]) / counts for k in range(3)], axis=1)
    return _compact(merged, _distinct(group[triangles]))


def collapse(vertices: Floats, triangles: Triangles, *, target: int) -> tuple[Floats, Triangles]:
    """Collapse the edge of least quadric error until `target` triangles are left."""
    position = [tuple(row) for row in vertices.tolist()]
    faces: dict[int, tuple[int, int, int]] = {k: (a, b, c) for k, (a, b, c) in enumerate(triangles.tolist())}
    around: list[set[int]] = [set() for _ in position]
    for number, face in faces.items():
        for vertex in face:
            around[vertex].add(number)
    quadrics = _vertex_quadrics(vertices, triangles)
    version = [0] * len(position)
    heap: list[tuple[float, int, int, int, int, tuple[float, ...]]] = []

    def push(a: int, b: int) -> None:
        error, place = _best_place(_add(quadrics[a], quadrics[b]), position[a], position[b])
        heapq.heappush(heap, (error, a, b, version[a], version[b], place))

    for a, b in sorted({(min(e), max(e)) for f in faces.values() for e in zip(f, (f[1], f[2], f[0]), strict=True)}):
        push(a, b)
    while len(faces) > target and heap:
        _, a, b, version_a, version_b, place = heapq.heappop(heap)
        if version[a] != version_a or version[b] != version_b or _flips(faces, around, position, (a, b), place):
            continue
        position[a], quadrics[a] = place, _add(quadrics[a], quadrics[b])
        for number in sorted(around[b]):
            face = faces[number]
            if a in face:
                for vertex in face:
                    around[vertex].discard(number)
                del faces[number]
            else:
                faces[number] = (
                    a if face[0] == b else face[0],
                    a if face[1] == b else face[1],
                    a if face[2] == b else face[2],
                )
                around[a].add(number)
        around[b] = set()
        version[a] += 1
        version[b] += 1
        for vertex in sorted({v for number in around[a] for v in faces[number]} - {a}):
            push(min(a, vertex), max(a, vertex))
    left = np.array([faces[k] for k in sorted(faces)], dtype=np.int64).reshape(-1, 3)
    return _compact(np.array(position, dtype=np.float64), left)


def hull_of(vertices: Floats, *, points: int) -> tuple[Floats, Triangles]:
    """A convex hull with at most `points` corners: the extreme vertices in directions spread over the sphere."""
    turn = np.arange(points) * (np.pi * (3.0 - 5.0**0.5))  # golden angle
    height = 1.0 - 2.0 * (np.arange(points) + 0.5) / points
    ring = np.sqrt(1.0 - height**2)
    x, y = ring * np.cos(turn), ring * np.sin(turn)
    extreme = [
        int(np.argmax(vertices[:, 0] * x[k] + vertices[:, 1] * y[k] + vertices[:, 2] * height[k]))
        for k in range(points)
    ]
    corners = vertices[sorted(set(extreme))]
    return _compact(corners, convex_hull(corners))


def _distinct(triangles: Triangles) -> Triangles:
    """Drop triangles with a repeated vertex, and repeated triangles."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    kept = triangles[(a != b) & (b != c) & (a != c)]
    _, first = np.unique(np.sort(kept, axis=1), axis=0, return_index=True)
    unique: Triangles = kept[np.sort(first)]
    return unique


def _compact(vertices: Floats, triangles: Triangles) -> tuple[Floats, Triangles]:
    used, renumbered = np.unique(triangles, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3).astype(np.int64)


def _vertex_quadrics(vertices: Floats, triangles: Triangles) -> list[Quadric]:
    """Sum of the squared-distance forms of the planes around each vertex, weighted by area."""
    corners = vertices[triangles]
    normal = cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.sqrt(normal[:, 0] ** 2 + normal[:, 1] ** 2 + normal[:, 2] ** 2)
    a, b, c = (normal[:, k] / np.maximum(length, 1e-18) for k in range(3))
    d = -(a * corners[:, 0, 0] + b * corners[:, 0, 1] + c * corners[:, 0, 2])
    forms = np.stack([a * a, a * b, a * c, a * d, b * b, b * c, b * d, c * c, c * d, d * d], axis=1) * length[:, None]
    total = np.zeros((len(vertices), 10))
    for k in range(3):
        np.add.at(total, triangles[:, k], forms)
    return [tuple(row) for row in total.tolist()]


def _add(p: Quadric, q: Quadric) -> Quadric:
    return tuple(x + y for x, y in zip(p, q, strict=True))


def _best_place(q: Quadric, p: tuple[float, ...], r: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    """The best of both ends and the middle, with its error; a little length keeps flat regions even."""
    middle = tuple((a + b) / 2 for a, b in zip(p, r, strict=True))
    length = sum((a - b) ** 2 for a, b in zip(p, r, strict=True))
    error, place = min(((_error(q, place), place) for place in (middle, p, r)), key=lambda item: item[0])
    return error + 1e-9 * length, place


def _error(q: Quadric, p: tuple[float, ...]) -> float:
    x, y, z = p
    squares = q[0] * x * x + q[4] * y * y + q[7] * z * z + q[9]
    return abs(squares + 2 * (q[1] * x * y + q[2] * x * z + q[3] * x + q[5] * y * z + q[6] * y + q[8] * z))


def _flips(
    faces: dict[int, tuple[int, int, int]],
    around: list[set[int]],
    position: list[tuple[float, ...]],
    edge: tuple[int, int],
    place: tuple[float, ...],
) -> bool:
    """Whether moving both ends of the edge to `place` would turn a neighboring triangle over."""
    for vertex in edge:
        for number in around[vertex]:
            face = faces[number]
            if edge[0] in face and edge[1] in face:
                continue
            before = _normal([position[k] for k in face])
            after = _normal([place if k == vertex else position[k] for k in face])
            if before[0] * after[0] + before[1] * after[1] + before[2] * after[2] < 0:
                return True
    return False


def _normal(corners: list[tuple[float, ...]]) -> tuple[float, float, float]:
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
    ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
