from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vw2_robot.envs.actions import parse_action, to_relative_action
from vw2_robot.errors import InputError


def test_a_plain_array_is_relative_and_its_gripper_goes_by_sign() -> None:
    for given, meant in [(0.3, 1), (7.0, 1), (0.0, -1), (-0.01, -1)]:
        command = parse_action(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, given], np.float32))
        assert (command.kind, command.gripper) == ("cartesian_rel", meant)
        np.testing.assert_allclose(command.values, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rtol=1e-6)


def test_what_was_passed_is_not_written_to_and_not_shared() -> None:
    action = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    before = action.copy()
    command = parse_action(action)
    command.values[:] = 9
    np.testing.assert_array_equal(action, before)


@pytest.mark.parametrize(
    ("action", "kind", "size"),
    [
        (((1, 2, 3), (0, 0, 0), 1), "cartesian_abs", 6),
        (((1, 2, 3), (0, 0, 0, 1), [-1]), "cartesian_abs", 7),
        ({"type": "cartesian_rel", "action": [0] * 6 + [1]}, "cartesian_rel", 6),
        ({"type": "cartesian_abs", "action": ((1, 2, 3), (0, 0, 0), 1)}, "cartesian_abs", 6),
        ({"type": "cartesian_abs", "action": [0] * 6 + [1]}, "cartesian_abs", 6),
        ({"type": "cartesian_abs", "action": [0] * 7 + [-1]}, "cartesian_abs", 7),
        ({"type": "joint_abs", "action": [0] * 7 + [-1]}, "joint_abs", 7),
        ({"type": "joint_rel", "action": np.ones(8)}, "joint_rel", 7),
    ],
)
def test_every_documented_form_is_understood(action: Any, kind: str, size: int) -> None:
    command = parse_action(action)
    assert (command.kind, command.values.size) == (kind, size)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.zeros(6), r"expected 7 numbers in one row, received shape \(6,\)"),
        (np.zeros((1, 7)), r"received shape \(1, 7\)"),
        ([0, 0, 0, 0, 0, np.nan, 1], "finite"),
        (["a"] * 7, "expected numbers"),
        ({"type": "cartesian_rel", "action": [0] * 6 + [0.5]}, "must be 1 .open. or -1 .close., received 0.5"),
        (((1, 2, 3), (0, 0, 0), 0), "must be 1"),
        (((1, 2), (0, 0, 0), 1), "3 Euler angles or 4 quaternion"),
        ({"type": "joint_abs", "action": [0] * 7}, "expected 8 numbers"),
        ({"type": "velocity", "action": [0] * 7}, "known: cartesian_rel, cartesian_abs, joint_rel, joint_abs"),
        ({"action": [0] * 7}, "keys"),
    ],
)
def test_an_action_that_fits_no_form_is_refused_with_the_reason(action: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_action(action)


def test_a_relative_action_leads_back_to_the_absolute_one() -> None:
    robot_obs = np.zeros(15)
    robot_obs[:6] = [0.1, -0.2, 0.5, 3.13, 0.0, 1.5]
    absolute = np.array([0.11, -0.21, 0.505, -3.14, 0.02, 1.49, -1])
    relative = to_relative_action(absolute, robot_obs)
    np.testing.assert_allclose(relative[:3] * 0.02, absolute[:3] - robot_obs[:3])
    np.testing.assert_allclose(relative[3:6] * 0.05, [2 * np.pi - 3.14 - 3.13, 0.02, -0.01])
    assert relative[6] == -1


def test_a_far_target_is_clipped_to_one_unit() -> None:
    relative = to_relative_action([1, -1, 0, 1, -1, 0, 1], np.zeros(15))
    np.testing.assert_allclose(relative, [1, -1, 0, 1, -1, 0, 1])
