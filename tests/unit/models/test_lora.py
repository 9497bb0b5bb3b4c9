import pytest
import torch
from torch import nn

from vw2_robot.models.lora import LoRA
from vw2_robot.models.policy.config import LoRAConfig


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 3))


def adapted(rank=2, alpha=4.0):
    net = network().requires_grad_(False)
    return net, LoRA(net, LoRAConfig(rank, alpha), generator=torch.Generator().manual_seed(1), skip=(net[4],))


def test_adapters_begin_as_nothing_and_leave_the_state_dict_alone():
    x, net = torch.randn(5, 6), network()
    before = net(x)
    net, lora = adapted()
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    assert net.state_dict().keys() == network().state_dict().keys()
    assert lora.names == ("0", "2")
    assert [tuple(p.shape) for p in lora.down] == [(2, 6), (2, 8)]
    assert [tuple(p.shape) for p in lora.up] == [(8, 2), (4, 2)]


def test_only_adapters_learn_and_what_they_add_is_scale_times_up_times_down():
    net, lora = adapted()
    with torch.no_grad():
        for up in lora.up:
            up.normal_()
    x = torch.randn(5, 6)
    y = net(x)
    first = nn.functional.linear(x, net[0].weight + 2.0 * lora.up[0] @ lora.down[0], net[0].bias)
    second = nn.functional.linear(net[1](first), net[2].weight + 2.0 * lora.up[1] @ lora.down[1])
    torch.testing.assert_close(y, net[4](net[3](second)))
    y.square().sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora.parameters())


def test_a_merged_copy_computes_the_same_without_hooks_and_leaves_the_original():
    net, lora = adapted()
    with torch.no_grad():
        for up in lora.up:
            up.normal_()
    x, base = torch.randn(5, 6), {name: value.clone() for name, value in net.state_dict().items()}
    plain = lora.merged(net)
    torch.testing.assert_close(plain(x), net(x))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in base.items())
    fresh = network()
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fresh(x), net(x))


def test_the_start_depends_on_the_generator_alone():
    torch.manual_seed(5)
    first = adapted()[1]
    torch.manual_seed(6)
    second = adapted()[1]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (2, 0.0)])
def test_impossible_sizes_are_refused(rank, alpha):
    with pytest.raises(ValueError, match="must be positive"):
        LoRAConfig(rank, alpha)


def test_a_module_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        LoRA(nn.LayerNorm(3), LoRAConfig(), generator=torch.Generator())
