import pytest
import torch
from torch import nn

from vw2_robot.models.averaging import Average


def test_an_average_follows_the_recurrence_for_parameters_and_statistics():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average({"net": net}, 0.9)
    expected, mean = net[0].weight.detach().clone(), net[1].running_mean.clone()
    for step in range(60):
        with torch.no_grad():
            net[0].weight += torch.randn(2, 2)
        net(torch.randn(4, 2))
        average.update(step)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * net[0].weight.detach()
        mean = keep * mean + (1 - keep) * net[1].running_mean
    slow = average.modules["net"]
    torch.testing.assert_close(slow[0].weight, expected)
    torch.testing.assert_close(slow[1].running_mean, mean)
    assert int(slow[1].num_batches_tracked) == 60


def test_what_does_not_move_stays_bit_equal_and_nothing_of_an_average_learns():
    net = nn.Linear(3, 3)
    average = Average({"net": net}, 0.999)
    for step in range(50):
        average.update(step)
    assert torch.equal(average.modules["net"].weight, net.weight)
    assert average.modules["net"].weight is not net.weight
    assert not any(p.requires_grad for p in average.modules["net"].parameters())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_decays_that_make_no_sense_are_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        Average({}, decay)
