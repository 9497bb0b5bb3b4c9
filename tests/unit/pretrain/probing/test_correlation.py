"""The penalty that keeps the digits of a latent step apart, and the standardization that goes with it."""

from __future__ import annotations

import pytest
import torch

from vw2_robot.distributed.batch_share import StatisticsGroups
from vw2_robot.models.dldm.dldm import Standardize
from vw2_robot.pretrain.targets import correlation


def everything(codes: torch.Tensor) -> torch.Tensor:
    return torch.ones(codes.shape[:2], dtype=torch.bool)


def test_equal_dimensions_are_correlated_and_independent_ones_are_not() -> None:
    noise = torch.Generator().manual_seed(0)
    one = torch.randn(500, 2, 1, 1, generator=noise)
    signs = torch.tensor([1.0, -2.0, 3.0, 0.5]).view(1, 1, 2, 2)
    same, free = one * signs, torch.randn(500, 2, 2, 2, generator=noise)
    assert correlation(same, everything(same)).item() == pytest.approx(1, abs=1e-3)
    assert correlation(free, everything(free)).item() < 5e-3


def test_correlation_agrees_with_numpys_and_skips_invalid_steps() -> None:
    noise = torch.Generator().manual_seed(1)
    codes = torch.randn(40, 3, 2, 2, generator=noise) @ torch.tensor([[1.0, 0.4], [0.0, 1.0]])
    valid = torch.rand(40, 3, generator=noise) > 0.3
    expected = torch.corrcoef(codes.flatten(2)[valid].T)
    off = expected[~torch.eye(4, dtype=torch.bool)].square().mean().item()
    assert correlation(codes, valid).item() == pytest.approx(off, rel=1e-3)
    spoiled = torch.where(valid[..., None, None], codes, torch.full_like(codes, 9.0))
    torch.testing.assert_close(correlation(spoiled, valid), correlation(codes, valid))


def test_the_correlation_of_several_groups_is_the_mean_of_theirs() -> None:
    noise = torch.Generator().manual_seed(1)
    codes = torch.randn(12, 3, 2, 2, generator=noise).requires_grad_()
    valid = torch.rand(12, 3, generator=noise) > 0.3
    found = correlation(codes, valid, StatisticsGroups(4))
    wanted = torch.stack([correlation(codes[i : i + 4], valid[i : i + 4]) for i in (0, 4, 8)]).mean()
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, codes)[0] for loss in (found, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert abs((correlation(codes, valid) - found).item()) > 0.01


def test_following_the_gradient_decorrelates_the_dimensions() -> None:
    noise = torch.Generator().manual_seed(2)
    codes = (
        torch.randn(64, 1, 1, 1, generator=noise) + 0.1 * torch.randn(64, 1, 2, 2, generator=noise)
    ).requires_grad_()
    before = correlation(codes, everything(codes))
    optimizer = torch.optim.Adam([codes], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        correlation(codes, everything(codes)).backward()
        optimizer.step()
    assert before.item() > 0.9
    assert correlation(codes, everything(codes)).item() < 0.1


@pytest.mark.parametrize("latent_steps", [0, 1])
def test_a_batch_with_hardly_any_valid_step_gives_a_finite_gradient(latent_steps: int) -> None:
    codes = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    valid = torch.zeros(2, 2, dtype=torch.bool)
    valid[0, :latent_steps] = True
    loss = correlation(codes, valid)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert codes.grad is not None
    assert torch.isfinite(codes.grad).all()


def test_every_query_is_standardized_for_itself() -> None:
    noise = torch.Generator().manual_seed(4)
    z = 0.01 * torch.randn(256, 2, 4, 3, generator=noise) + 5 * torch.arange(4.0).view(1, 1, 4, 1)
    out = Standardize(4, 3)(z)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(4, 3), atol=5e-3, rtol=0)
    torch.testing.assert_close(out.square().mean((0, 1)), torch.ones(4, 3), atol=0.2, rtol=0)
