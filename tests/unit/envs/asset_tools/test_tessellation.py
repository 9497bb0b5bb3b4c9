"""Cutting faces changes neither their shape nor their texture, and saves the renderer work."""

import itertools

import numpy as np
import pytest

from vw2_robot.envs.asset_tools.meshes import Face, Mesh
from vw2_robot.envs.asset_tools.tessellation import View, static_view, tessellate

VIEW = static_view(rotation=0.0, scale=1.0)


@pytest.fixture(scope="module")
def board() -> Mesh:
    mesh = Mesh()
    mesh.add_box((-0.44, -0.18, 0.40), (0.44, 0.02, 0.44))
    return mesh


def area(faces: list[Face]) -> float:
    """Of triangles and convex polygons."""
    total = 0.0
    for points, _ in faces:
        corners = np.array(points)
        for k in range(1, len(corners) - 1):
            total += float(np.linalg.norm(np.cross(corners[k] - corners[0], corners[k + 1] - corners[0]))) / 2
    return total


def boxed_pixels(faces: list[Face], view: View) -> float:
    """Pixels in the bounding boxes of the triangles that face the camera."""
    total = 0.0
    for points, _ in faces:
        corners = np.array(points)
        if np.cross(corners[1] - corners[0], corners[2] - corners[0]) @ view.to_camera > 0:
            across, up = corners @ view.right * view.pixels, corners @ view.up * view.pixels
            total += float(np.ptp(across) * np.ptp(up))
    return total


def fans(faces: list[Face]) -> list[Face]:
    """Each polygon cut from its first corner."""
    return [
        ([points[0], points[k], points[k + 1]], [uv[0], uv[k], uv[k + 1]])
        for points, uv in faces
        for k in range(1, len(points) - 1)
    ]


def test_cut_faces_cover_what_the_faces_covered(board: Mesh) -> None:
    triangles = tessellate(board.polygons, VIEW)
    assert {len(points) for points, _ in triangles} == {3}
    assert area(triangles) == pytest.approx(area(board.polygons))
    corners = np.concatenate([points for points, _ in triangles])
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [(-0.44, -0.18, 0.40), (0.44, 0.02, 0.44)])


def test_every_new_corner_lies_on_its_face_with_the_texture_of_that_place(board: Mesh) -> None:
    for face in board.polygons:
        points, uv = np.array(face[0]), np.array(face[1])
        edges = np.stack([points[1] - points[0], points[3] - points[0]], axis=1)
        for corners, texture in tessellate([face], VIEW):
            shares = np.linalg.lstsq(edges, (np.array(corners) - points[0]).T, rcond=None)[0].T
            np.testing.assert_allclose(shares @ edges.T + points[0], corners, atol=1e-12)
            np.testing.assert_allclose(uv[0] + shares @ np.stack([uv[1] - uv[0], uv[3] - uv[0]]), texture, atol=1e-12)


def test_triangles_keep_facing_the_same_way(board: Mesh) -> None:
    for points, uv in board.polygons:
        normal = np.cross(np.subtract(points[1], points[0]), np.subtract(points[2], points[0]))
        for corners, _ in tessellate([(points, uv)], VIEW):
            a, b, c = np.array(corners)
            assert np.cross(b - a, c - a) @ normal > 0


def test_the_renderer_tests_fewer_pixels(board: Mesh) -> None:
    before, after = boxed_pixels(fans(board.polygons), VIEW), boxed_pixels(tessellate(board.polygons, VIEW), VIEW)
    assert after < 0.9 * before


def test_near_faces_come_first(board: Mesh) -> None:
    depths = [float(np.mean(points, axis=0) @ VIEW.to_camera) for points, _ in tessellate(board.polygons, VIEW)]
    assert all(a >= b - 1e-5 for a, b in itertools.pairwise(depths))


def test_a_turned_link_is_seen_from_the_turned_camera() -> None:
    turned = static_view(rotation=np.pi / 2, scale=0.5)
    np.testing.assert_allclose(turned.to_camera, [VIEW.to_camera[0], VIEW.to_camera[2], -VIEW.to_camera[1]], atol=1e-12)
    assert turned.pixels == pytest.approx(VIEW.pixels / 2)
