"""Mesh decimation: fewer triangles for a visual mesh, because TinyRenderer's cost is per triangle, not per pixel.

Two passes. Vertex clustering merges everything inside a cell of a few millimeters; then edges are collapsed in order of
their quadric error (Garland and Heckbert 1997) until the target number of triangles is left. All sums are written out
in a fixed order, so a mesh is the same on every machine.
"""

from __future__ import annotations

import heapq

import numpy as np

from .meshes import Floats, Triangles, convex_hull, cross

Quadric = tuple[float, ...]  # upper triangle of the symmetric 4 x 4 matrix: aa ab ac ad bb bc bd cc cd dd


def decimate(vertices: Floats, triangles: Triangles, *, target: int, cell_m: float = 0.004) -> tuple[Floats, Triangles]:
    """Return at most `target` triangles that stay close to the given surface.

    Args:
        vertices: [N, 3], meters.
        triangles: [M, 3], indices of vertices.
        target: number of triangles.
        cell_m: edge of the cells of the clustering.
    """
    vertices, triangles = cluster(vertices, triangles, cell_m=cell_m)
    return collapse(vertices, triangles, target=target)


def cluster(vertices: Floats, triangles: Triangles, *, cell_m: float) -> tuple[Floats, Triangles]:
    """Merge the vertices of each cell of a grid into their mean; drop triangles that vanish.

    Args:
        vertices: [N, 3], meters.
        triangles: [M, 3], indices of vertices.
        cell_m: edge of a cell, meters.

    Returns:
        The merged vertices that have a triangle, [at most N, 3] in meters, and the triangles left, [at most M, 3].
    """
    cells = np.floor(vertices / cell_m).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    group = group.reshape(-1)
    counts = np.bincount(group).astype(np.float64)
    merged = np.stack([np.bincount(group, weights=vertices[:, k]) / counts for k in range(3)], axis=1)
    # Drop triangles with a repeated vertex, and repeated triangles.
    a, b, c = group[triangles].T
    kept = group[triangles][(a != b) & (b != c) & (a != c)]
    _, first = np.unique(np.sort(kept, axis=1), axis=0, return_index=True)
    return _compact(merged, kept[np.sort(first)])


def collapse(vertices: Floats, triangles: Triangles, *, target: int) -> tuple[Floats, Triangles]:
    """Collapse the edge of least quadric error until `target` triangles are left.

    Args:
        vertices: [N, 3], meters.
        triangles: [M, 3], indices of vertices.
        target: number of triangles to reach; more are left where no edge can collapse without flipping a triangle.

    Returns:
        The vertices that have a triangle, [at most N, 3] in meters, and the triangles left, [at most M, 3].
    """
    position = [tuple(row) for row in vertices.tolist()]
    faces: dict[int, tuple[int, int, int]] = {k: (a, b, c) for k, (a, b, c) in enumerate(triangles.tolist())}
    # Numbers of the faces around each vertex.
    around: list[set[int]] = [set() for _ in position]
    for number, face in faces.items():
        for vertex in face:
            around[vertex].add(number)
    quadrics = _vertex_quadrics(vertices, triangles)
    # Heap entries are not removed when a vertex changes; its version marks them as out of date.
    version = [0] * len(position)
    heap: list[tuple[float, int, int, int, int, tuple[float, ...]]] = []

    def push(a: int, b: int) -> None:
        # Of both ends and the middle, the place of least error; a term of length keeps flat regions even.
        p = position[a]
        r = position[b]
        q = _add(quadrics[a], quadrics[b])
        middle = tuple((x + y) / 2 for x, y in zip(p, r, strict=True))
        length = sum((x - y) ** 2 for x, y in zip(p, r, strict=True))
        error, place = min(((_error(q, place), place) for place in (middle, p, r)), key=lambda item: item[0])
        heapq.heappush(heap, (error + 1e-9 * length, a, b, version[a], version[b], place))

    for a, b in sorted({(min(e), max(e)) for f in faces.values() for e in zip(f, (f[1], f[2], f[0]), strict=True)}):
        push(a, b)
    while len(faces) > target and heap:
        _, a, b, version_a, version_b, place = heapq.heappop(heap)
        if version[a] != version_a or version[b] != version_b or _flips(faces, around, position, (a, b), place):
            continue
        # Vertex b is merged into a: faces with both vanish, those with b alone get a.
        position[a] = place
        quadrics[a] = _add(quadrics[a], quadrics[b])
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
        # The errors of all edges at the merged vertex have changed.
        for vertex in sorted({v for number in around[a] for v in faces[number]} - {a}):
            push(min(a, vertex), max(a, vertex))
    remaining = np.array([faces[k] for k in sorted(faces)], dtype=np.int64).reshape(-1, 3)
    return _compact(np.array(position, dtype=np.float64), remaining)


def hull_of(vertices: Floats, *, points: int) -> tuple[Floats, Triangles]:
    """Return a convex hull with at most `points` corners: the extreme vertices in evenly spread directions."""
    # Directions on a Fibonacci sphere.
    azimuth = np.arange(points) * (np.pi * (3.0 - 5.0**0.5))  # golden angle
    height = 1.0 - 2.0 * (np.arange(points) + 0.5) / points
    ring = np.sqrt(1.0 - height**2)
    x = ring * np.cos(azimuth)
    y = ring * np.sin(azimuth)
    extreme = [
        int(np.argmax(vertices[:, 0] * x[k] + vertices[:, 1] * y[k] + vertices[:, 2] * height[k]))
        for k in range(points)
    ]
    corners = vertices[sorted(set(extreme))]
    return _compact(corners, convex_hull(corners))


def _compact(vertices: Floats, triangles: Triangles) -> tuple[Floats, Triangles]:
    """Remove vertices without a triangle."""
    used, renumbered = np.unique(triangles, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3).astype(np.int64)


def _vertex_quadrics(vertices: Floats, triangles: Triangles) -> list[Quadric]:
    """Return for each vertex the quadratic form of squared distances to its planes, weighted by area."""
    # The plane of a triangle is a x + b y + c z + d = 0 with a unit normal.
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


def _error(q: Quadric, p: tuple[float, ...]) -> float:
    """Return the value of a quadric at a point."""
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
    """Return whether moving both ends of an edge to `place` would flip a neighboring triangle."""
    for vertex in edge:
        for number in around[vertex]:
            face = faces[number]
            # Faces with both ends vanish, so they cannot flip.
            if edge[0] in face and edge[1] in face:
                continue
            before = _normal([position[k] for k in face])
            after = _normal([place if k == vertex else position[k] for k in face])
            if before[0] * after[0] + before[1] * after[1] + before[2] * after[2] < 0:
                return True
    return False


def _normal(corners: list[tuple[float, ...]]) -> tuple[float, float, float]:
    """Return the normal of a triangle, of any length."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
    ux = bx - ax
    uy = by - ay
    uz = bz - az
    vx = cx - ax
    vy = cy - ay
    vz = cz - az
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
