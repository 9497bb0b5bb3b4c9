import pytest
import torch
from torch import nn

from vw2_robot.optim import NonFiniteLossError, build_optimizer, clip_gradients, optimizer_step
from vw2_robot.schedule import LoopConfig, OptimConfig, learning_rate


def test_rate_rises_linearly_and_then_falls_linearly_to_zero():
    config = OptimConfig(lr=1.0, warmup_steps=10)
    rates = [learning_rate(step, config, total_steps=110) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([(110 - step) / 100 for step in range(10, 110)])
    assert learning_rate(110, config, total_steps=110) == 0


def test_warm_up_takes_at_most_a_fifth_of_a_short_run():
    config = OptimConfig(lr=1.0, warmup_steps=2000)
    assert learning_rate(19, config, total_steps=100) == 1.0
    assert learning_rate(18, config, total_steps=100) < 1.0
    assert learning_rate(0, config, total_steps=1) == 1.0


def test_weight_decay_is_on_matrices_only_and_the_fast_group_is_faster():
    slow, fast = nn.Linear(3, 3), nn.Linear(3, 3)
    slow.bias.requires_grad_(False)
    groups = build_optimizer(
        slow.parameters(), OptimConfig(weight_decay=0.3), fast=fast.parameters(), fast_mult=10.0
    ).param_groups
    found = [([tuple(p.shape) for p in g["params"]], g["weight_decay"], g["lr_mult"]) for g in groups]
    assert found == [([(3, 3)], 0.3, 1.0), ([(3, 3)], 0.3, 10.0), ([(3,)], 0.0, 10.0)]
    assert groups[0]["betas"] == (0.9, 0.99)


def test_a_step_is_that_of_adamw_at_the_scheduled_rate_on_clipped_gradients():
    config = OptimConfig(lr=0.5, beta2=0.9, weight_decay=0.1, warmup_steps=0, clip_norm=1.0)
    net, reference = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    reference.load_state_dict(net.state_dict())
    mine = build_optimizer(net.parameters(), config)
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.5, betas=(0.9, 0.9), weight_decay=0.1)
    for step in range(3):
        loss = 100 * net(torch.ones(2)).sum()
        loss.backward()
        norm = optimizer_step(loss.detach(), mine, step=step, config=config, total_steps=10)
        assert net.weight.grad is None  # the next batch begins at zero
        assert float(norm) == pytest.approx(100 * 2**0.5)  # as it was before clipping
        reference.weight.grad = torch.full((1, 2), 0.5**0.5)
        theirs.param_groups[0]["lr"] = 0.5 * (10 - step) / 10
        theirs.step()
    torch.testing.assert_close(net.weight, reference.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_moves(bad):
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    optimizer = build_optimizer(net.parameters(), OptimConfig())
    loss = net(torch.ones(2)).sum() * bad
    loss.backward()
    with pytest.raises(NonFiniteLossError, match="at step 7"):
        optimizer_step(loss.detach(), optimizer, step=7, config=OptimConfig(), total_steps=10)
    assert torch.equal(net.weight, before)
    assert not optimizer.state


def test_a_gradient_that_is_not_finite_stops_before_anything_moves_and_names_the_step_of_the_run():
    net = nn.Linear(1, 1, bias=False)
    before = net.weight.detach().clone()
    loss = (net(torch.zeros(1)).sum() - 0.0).abs().sqrt()  # zero, with an infinite slope
    assert torch.isfinite(loss)
    loss.backward()
    optimizer = build_optimizer(net.parameters(), OptimConfig())
    with pytest.raises(NonFiniteLossError, match=r"step 107.*last checkpoint"):
        optimizer_step(loss.detach(), optimizer, step=7, config=OptimConfig(), total_steps=10, first_step=100)
    assert torch.equal(net.weight, before)
    assert not optimizer.state


@pytest.mark.parametrize("most", [0.5, 1e6])
def test_gradients_are_scaled_down_together_and_never_up(most):
    net, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    (10 * net(torch.ones(3)).sum()).backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    norm = clip_gradients([*net.parameters(), *unused.parameters()], most)
    assert float(norm) == pytest.approx(10 * 8**0.5)  # six weights and two biases, each with a slope of 10
    factor = min(1.0, most / float(norm))
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient)
    assert all(parameter.grad is None for parameter in unused.parameters())


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"clip_norm": -1.0}, {"warmup_steps": -1}, {"beta2": 1.0}])
def test_impossible_optimizers_are_refused(change):
    with pytest.raises(ValueError, match=f"optim.{next(iter(change))}"):
        OptimConfig(**change)


@pytest.mark.parametrize("change", [{"train_steps": 0}, {"batch_size": 0}, {"log_every": 0}, {"save_every": 0}])
def test_impossible_loops_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        LoopConfig(**{"train_steps": 1, "batch_size": 1, "optim": OptimConfig(), **change})


def test_a_decay_may_end_later_than_the_loop_and_above_zero():
    config = OptimConfig(lr=1.0, warmup_steps=10, decay_steps=410, decay_to=0.5)
    rates = [learning_rate(step, config, total_steps=100) for step in (9, 10, 210, 410, 500)]
    assert rates == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
