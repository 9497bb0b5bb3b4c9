"""Standardization before FSQ: over one group it is batch normalization, over several one of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vw2_robot.distributed.batch_share import StatisticsGroups
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, Standardize, fake_clip

TINY = DLDMConfig(
    num_frames=9,
    height=8,
    width=8,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2),
    z_channels=8,
    z_norm="batch",
)


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    """[12 clips, 3 steps, 4 queries, 2 dims], each query with a mean and size of its own."""
    noise = torch.randn(12, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return noise * torch.tensor([0.7, 1.0, 3.0, 0.5]).view(4, 1) + torch.arange(4.0).view(4, 1)


def batch_norm(z: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    return norm(z.flatten(2).flatten(0, 1)).view_as(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_group_is_batch_normalization(dtype: torch.dtype) -> None:
    mine, theirs = Standardize(4, 2).to(dtype), nn.BatchNorm1d(8, affine=False, momentum=0.1).to(dtype)
    for step in range(3):
        z = (features(dtype) + step).requires_grad_()
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(step), dtype=dtype)
        found, wanted = mine(z), batch_norm(z, theirs)
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6)
        gradients = [torch.autograd.grad((out * weight).sum(), z)[0] for out in (found, wanted)]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.norm.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    assert int(mine.norm.num_batches_tracked) == 3
    mine.eval()
    theirs.eval()
    torch.testing.assert_close(mine(features(dtype)), batch_norm(features(dtype), theirs), rtol=1e-5, atol=1e-6)


def test_each_of_several_groups_is_standardized_for_itself() -> None:
    mine, z = Standardize(4, 2), features()
    mine.groups, mine.groups_per_batch = StatisticsGroups(4), 3
    parts = [batch_norm(part, nn.BatchNorm1d(8, affine=False)) for part in z.split(4)]
    torch.testing.assert_close(mine(z), torch.cat(parts), rtol=1e-6, atol=2e-6)
    assert int(mine.norm.num_batches_tracked) == 3


def test_running_statistics_follow_the_groups_in_order_and_a_batch_moves_them_by_its_share() -> None:
    mine, z = Standardize(4, 2), features()
    mine.groups, mine.groups_per_batch = StatisticsGroups(4), 3
    mine(z)
    share = 1 - 0.9 ** (1 / 3)
    mean, variance = torch.zeros(8), torch.ones(8)
    for part in z.split(4):
        rows = part.flatten(2).flatten(0, 1)
        mean = mean + share * (rows.mean(0) - mean)
        variance = variance + share * (rows.var(0) - variance)  # unbiased, as of batch normalization
    torch.testing.assert_close(mine.norm.running_mean, mean)
    torch.testing.assert_close(mine.norm.running_var, variance)
    same = Standardize(4, 2)
    same.groups, same.groups_per_batch = StatisticsGroups(4), 3
    same(z[:4].repeat(3, 1, 1, 1))
    torch.testing.assert_close(same.norm.running_mean, 0.1 * z[:4].flatten(2).mean((0, 1)))


def test_micro_batches_of_whole_groups_give_what_the_batch_gives() -> None:
    whole, parts, z = Standardize(4, 2), Standardize(4, 2), features()
    for module in (whole, parts):
        module.groups, module.groups_per_batch = StatisticsGroups(2), 6
    assert torch.equal(torch.cat([parts(part) for part in z.split(4)]), whole(z))
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_a_single_latent_step_has_no_variance_and_stays_finite() -> None:
    module, z = Standardize(4, 2), features()[:1, :1].requires_grad_()
    out = module(z)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(module.norm.running_var).all()


def test_measured_statistics_are_those_of_the_clips_whatever_they_were_before() -> None:
    dldm = DLDM(TINY).eval()
    clips = [fake_clip(TINY, 8, seed=seed) * 0.1 for seed in range(3)]
    with torch.no_grad():
        before = dldm.pre_quant(dldm.qformer(dldm.features(torch.cat(clips))))
        dldm.measure_statistics(clips)
        after = dldm.pre_quant(dldm.qformer(dldm.features(torch.cat(clips))))
    flat = after.flatten(2).flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(flat.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.var(0), torch.ones(flat.shape[1]), atol=0.05, rtol=0)
    assert (before - after).abs().max() > 0.1
    with pytest.raises(InputError, match="has no statistics to measure"):
        DLDM(replace(TINY, z_norm="layer")).measure_statistics(clips)
