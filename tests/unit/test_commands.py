import numpy as np
import pytest

from vw2_robot.commands import commands, resolve_n_action_steps
from vw2_robot.errors import InputError


def test_commands_are_clipped_and_the_gripper_goes_by_sign():
    raw = np.array([[2.0, -3, 0.25, 1, -1, 0, 0.01], [0, 0, 0, 0, 0, 0, 0.0], [0, 0, 0, 0, 0, 0, -7]], dtype=np.float32)
    before = raw.copy()
    made = commands(raw, at_least=3)
    assert made[0].tolist() == [1, -1, 0.25, 1, -1, 0, 1]
    assert made[1:, 6].tolist() == [-1, -1]
    assert (raw == before).all()


def test_only_a_number_called_gripper_is_a_sign():
    assert commands([[0.2, 3.0]], at_least=1, names=("gripper", "effort")).tolist() == [[1, 1]]
    assert commands([[0.2, 0.3]], at_least=1, names=("lift", "effort")).tolist() == [[0.2, 0.3]]


@pytest.mark.parametrize("shape", [(3, 7), (8, 6), (7,), (1, 8, 7)])
def test_a_chunk_of_another_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(InputError, match=r"expected \[H, 7\].*H >= 4") as caught:
        commands(np.zeros(shape), at_least=4)
    assert str(list(shape)) in str(caught.value)


def test_actions_that_are_not_finite_are_refused():
    chunk = np.zeros((4, 7))
    chunk[2, 3] = np.nan
    with pytest.raises(InputError, match="not finite, first in row 2"):
        commands(chunk, at_least=4)


def test_the_interval_between_looks_is_the_policys_unless_overridden():
    assert resolve_n_action_steps({"n_action_steps": 6, "chunk_size": 8}, None) == 6
    assert resolve_n_action_steps({"n_action_steps": 6, "chunk_size": 8}, 2) == 2
    with pytest.raises(InputError, match="n_action_steps"):
        resolve_n_action_steps({"chunk_size": 8}, None)
    for wrong in (0, 9):
        with pytest.raises(InputError, match="predicts 8 actions"):
            resolve_n_action_steps({"n_action_steps": 4, "chunk_size": 8}, wrong)
