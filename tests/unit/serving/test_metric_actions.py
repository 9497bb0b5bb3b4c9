"""Meters, radians, and rotations as axis times angle."""

from __future__ import annotations

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.serving.metric_actions import MetricUnits, rotation_vector


def about(axis: int, angle: float) -> np.ndarray:
    """The matrix of a rotation about x, y or z."""
    matrix, (i, j) = np.eye(3), [n for n in range(3) if n != axis]
    sign = -1 if axis == 1 else 1
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -sign * np.sin(angle), sign * np.sin(angle), np.cos(angle)
    return matrix


def matrix_of(vector: np.ndarray) -> np.ndarray:
    """The matrix of a rotation vector, by the series of the exponential."""
    x, y, z = vector
    skew, power, total = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.eye(3), np.eye(3)
    for n in range(1, 40):
        power = power @ skew / n
        total = total + power
    return total


def test_a_rotation_vector_is_the_rotation_of_its_euler_angles() -> None:
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (50, 3))
    vectors = rotation_vector(angles)
    assert np.linalg.norm(vectors, axis=-1).max() <= np.pi
    for (roll, pitch, yaw), vector in zip(angles, vectors, strict=True):
        np.testing.assert_allclose(matrix_of(vector), about(2, yaw) @ about(1, pitch) @ about(0, roll), atol=1e-12)


def test_small_rotations_stay_exact_and_none_is_none() -> None:
    np.testing.assert_allclose(rotation_vector(np.array([[1e-9, 0, 0], [0, 0, -0.05]])), [[1e-9, 0, 0], [0, 0, -0.05]])
    np.testing.assert_array_equal(rotation_vector(np.zeros(3)), np.zeros(3))


def test_calvins_units_are_the_default_and_the_gripper_has_none() -> None:
    np.testing.assert_allclose(MetricUnits().convert(np.full((2, 7), -1.0))[1], [-0.02] * 3 + [-0.05] * 3 + [-1])
    np.testing.assert_allclose(MetricUnits(position_m=1, rotation_rad=2).convert(np.ones(7)), [1] * 3 + [2] * 3 + [1])
    with pytest.raises(InputError, match="must be positive, found 0 m"):
        MetricUnits(position_m=0)
