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


def test_bins_are_equally_frequent_and_what_is_chosen_is_the_center_of_the_label():
    head = build(bins=4)
    assert not head.state_dict()["centers"].any()
    actions = torch.rand(400, 7)
    actions[:, 6] = torch.where(torch.arange(400) % 4 == 0, 1.0, -1.0)  # two commands, the second a quarter of the time
    head.fit_bins(actions)
    labels = head.bins_of(actions)
    counts = torch.stack([(labels == number).sum(0) for number in range(4)])
    assert bool((counts[:, :6] - 100).abs().max() <= 25)
    assert counts[:, 6].tolist() == [300, 0, 0, 100]
    # The center is in the middle of its bin, of equal ones exactly there.
    nearest = (actions[:, :, None] - head.centers).abs().min(-1).values
    chosen = head.centers[torch.arange(7), labels]
    torch.testing.assert_close((chosen - actions).abs(), nearest)
    assert torch.equal(chosen[:, 6], actions[:, 6])
    # Of the likeliest bins.
    states = torch.randn(2, 3, 3, 16)
    likeliest = head.bin_logits(states).argmax(-1)
    assert torch.equal(head(states), head.centers[torch.arange(7), likeliest])
    assert head(states).shape == (2, 12, 7)


def test_the_loss_of_bins_is_the_mean_cross_entropy_of_the_actions_that_are_no_padding():
    head = build(bins=5)
    actions, mask = torch.rand(2, 12, 7), torch.ones(2, 12, dtype=torch.bool)
    head.fit_bins(actions.flatten(0, 1))
    mask[1, 4:] = False
    states = torch.randn(2, 3, 3, 16)
    log_p = head.bin_logits(states).log_softmax(-1)
    right = log_p.gather(-1, head.bins_of(actions)[..., None])[mask]
    torch.testing.assert_close(head.bin_loss(states, actions, mask, mask.sum()), -right.mean())
    # It is learned: after a few steps the head gives the center of each label's bin.
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        head.bin_loss(states, actions, mask, mask.sum()).backward()
        optimizer.step()
    wanted = head.centers[torch.arange(7), head.bins_of(actions)]
    assert torch.equal(head(states)[mask], wanted[mask])
