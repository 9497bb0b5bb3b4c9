import torch

from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.config import ActionHeadConfig


def build(stride=4, hidden=8, **change):
    torch.manual_seed(0)
    return ActionHead(ActionHeadConfig(hidden, **change), width=16, queries=2, stride=stride, action_size=7)


def test_every_latent_step_gives_as_many_actions_as_it_spans_frames():
    assert build()(torch.randn(2, 5, 3, 16)).shape == (2, 20, 7)
    assert build(stride=1)(torch.randn(2, 5, 3, 16)).shape == (2, 5, 7)


def test_without_the_last_code_a_step_has_a_state_for_each_code():
    assert build(last_code=False)(torch.randn(2, 5, 2, 16)).shape == (2, 20, 7)
    assert not ActionHeadConfig.of_checkpoint({"head": {"hidden": 8}}).last_code  # as the first checkpoints


def test_hidden_layer_is_four_times_the_smaller_of_width_and_limit():
    assert build(hidden=8).mlp[1].out_features == 32
    assert build(hidden=1024).mlp[1].out_features == 64


def test_actions_come_in_time_order_step_after_step():
    head, states = build(), torch.randn(1, 3, 3, 16)
    together = head(states)
    for step in range(3):
        torch.testing.assert_close(together[:, 4 * step : 4 * step + 4], head(states[:, step : step + 1]))
    # Inside a step the last layer holds action after action: moving row 7 * t + d moves dimension d of action t.
    with torch.no_grad():
        head.mlp[-1].bias[7 * 2 + 5] += 1
    moved = (head(states) - together).abs() > 0.5
    assert moved.nonzero().tolist() == [[0, 4 * step + 2, 5] for step in range(3)]


def test_all_states_of_a_step_are_read_and_none_of_another():
    head, states = build(), torch.randn(1, 3, 3, 16, requires_grad=True)
    head(states)[:, 4:8].sum().backward()  # the actions of step 2
    read = states.grad.abs().amax(dim=(0, 3)) > 0
    assert read.tolist() == [[False] * 3, [True] * 3, [False] * 3]
