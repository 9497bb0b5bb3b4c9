"""Shares of a batch, groups of its clips, and chunks of held-out samples, as one process sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vw2_robot.distributed import ranks
from vw2_robot.distributed.batch_share import BatchShare, PartOfBatch, StatisticsGroups, shared_chunks
from vw2_robot.errors import InputError


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_shares_of_all_ranks_are_the_batch_and_each_micro_batch_is_a_segment_of_it(
    world_size: int, micro_batches: int
) -> None:
    shares = [BatchShare(24, micro_batches, rank, world_size) for rank in range(world_size)]
    assert {share.size for share in shares} == {24 // world_size // micro_batches}
    for share in shares:
        assert np.array_equal(np.concatenate([share.rows[part] for part in share.slices()]), share.rows)
    in_order = [share.rows[share.slices()[number]] for number in range(micro_batches) for share in shares]
    assert np.concatenate(in_order).tolist() == list(range(24))


def test_the_share_of_a_single_process_is_the_batch() -> None:
    share = BatchShare.of(6, micro_batches=3)
    assert share == BatchShare(6, 3, 0, 1)
    assert share.rows.tolist() == list(range(6))
    assert share.slices() == [slice(0, 2), slice(2, 4), slice(4, 6)]


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 5), (4, 1), (2, 2), (1, 24)])
def test_a_batch_that_is_not_divided_is_refused(world_size: int, micro_batches: int) -> None:
    message = rf"WORLD_SIZE={world_size} and hardware\.micro_batches={micro_batches} do not divide a batch of 6; use "
    with pytest.raises(InputError, match=message):
        BatchShare(6, micro_batches, 0, world_size)


def test_frames_that_count_are_the_first_of_each_clip_and_those_of_valid_steps() -> None:
    part = PartOfBatch(0.5, 6, torch.tensor(7))
    assert int(part.frames(4)) == 6 + 4 * 7


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("count", "size"), [(10, 4), (12, 4), (1, 16), (5, 1), (7, 16), (33, 16)])
def test_chunks_of_all_ranks_cover_every_sample_once_in_equally_many_passes(
    world_size: int, count: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: world_size)
    found: list[int] = []
    passes = set()
    for rank in range(world_size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        chunks = list(shared_chunks(count, size))
        passes.add(len(chunks))
        assert all(1 <= len(rows) <= size and rows.max() < count for rows, _ in chunks)
        found += [int(row) for rows, counts in chunks if counts for row in rows]
    assert sorted(found) == list(range(count))
    assert len(passes) == 1


# ------------------------------------------------------------------------------------------------------------ groups


def by_loop(values: Tensor, clips: int) -> Tensor:
    return torch.stack([values[first : first + clips].sum(0) for first in range(0, len(values), clips)])


@pytest.mark.parametrize(("clips", "size"), [(None, 12), (1, 1), (3, 3), (4, 4), (12, 12)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_sums_are_those_of_a_loop_over_the_groups_and_spread_gives_them_back_to_each_clip(
    clips: int | None, size: int, shape: tuple[int, ...]
) -> None:
    values = torch.randn(12, *(shape or (1,)), generator=torch.Generator().manual_seed(0)).requires_grad_()
    groups = StatisticsGroups(clips)
    sums = groups.sums(values)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, by_loop(values.double(), size))
    spread = groups.spread(sums, 12)
    torch.testing.assert_close(spread, sums.repeat_interleave(size, 0), rtol=0, atol=0)
    assert torch.equal(groups.of_all_ranks(sums, 12), sums)
    weight = torch.randn(sums.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sums * weight).sum(), values)
    torch.testing.assert_close(gradient, weight.repeat_interleave(size, 0).float())


def test_sums_are_exact_under_autocast() -> None:
    values = torch.full((256, 1), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = StatisticsGroups().sums(values)
        assert float(StatisticsGroups().spread(sums, 256)[0]) == float(sums)
    assert float(sums) == pytest.approx(256 * 1.001, rel=1e-6)


@pytest.mark.parametrize("clips", [4, 5, 12])
def test_groups_that_do_not_divide_a_micro_batch_are_refused(clips: int) -> None:
    message = rf"train_dldm\.statistics_group={clips} does not divide a micro-batch of 6 clips over 1 ranks; use a"
    with pytest.raises(InputError, match=message):
        StatisticsGroups(clips).sums(torch.zeros(6, 1))
