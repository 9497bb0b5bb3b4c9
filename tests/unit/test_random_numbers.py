"""The numbers of a sample depend on seed, stream, step and its place in the global batch, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vw2_robot.random_numbers import SampleNoise, generator


def noise(samples, *, seed: int = 0, step: int = 0, stream: int = 0, device: torch.device | str = "cpu") -> SampleNoise:
    return SampleNoise(seed, step, stream=stream, samples=samples, device=device)


def drawn(found: SampleNoise) -> list[Tensor]:
    """Numbers of all kinds, one after the other."""
    return [found.rand(), found.randn(2, 3), found.randint(-5, 6, 4), found.rand(2)]


@pytest.mark.parametrize("samples", [[0], [3, 1], [7, 5, 0, 2], range(4, 8)])
def test_a_sample_has_the_same_numbers_whatever_other_samples_are_with_it_and_in_any_order(samples) -> None:
    whole = drawn(noise(range(8)))
    for all_samples, some in zip(whole, drawn(noise(samples)), strict=True):
        assert torch.equal(some, all_samples[list(samples)])


def test_a_device_by_name_and_as_an_object_give_the_same_numbers() -> None:
    for one, other in zip(drawn(noise([1, 2])), drawn(noise([1, 2], device=torch.device("cpu"))), strict=True):
        assert torch.equal(one, other)


def test_numbers_do_not_depend_on_the_global_generator_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    first = drawn(noise([0, 1]))
    after = torch.rand(3)
    torch.manual_seed(2)
    second = drawn(noise([0, 1]))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


def test_seeds_streams_steps_and_samples_all_have_numbers_of_their_own() -> None:
    found = [
        noise([sample], seed=seed, step=step, stream=stream).randn(4)[0]
        for seed in range(3)
        for step in range(3)
        for stream in range(3)
        for sample in range(3)
    ]
    found += [
        torch.randn(4, generator=generator(seed, step, stream=stream))
        for seed in range(3)
        for step in range(3)
        for stream in range(3)
    ]
    assert len({tuple(numbers.tolist()) for numbers in found}) == 3**4 + 3**3


def test_later_numbers_of_a_sample_differ_from_earlier_ones() -> None:
    found = noise([0])
    assert not torch.equal(found.randn(4), found.randn(4))


def test_numbers_have_the_promised_shapes_types_and_ranges() -> None:
    found = noise(range(500))
    uniform, normal, whole = found.rand(2), found.randn(3), found.randint(-2, 3, 2)
    assert len(found) == 500
    assert [value.dtype for value in (uniform, normal, whole)] == [torch.float32, torch.float32, torch.int64]
    assert [tuple(value.shape) for value in (uniform, normal, whole)] == [(500, 2), (500, 3), (500, 2)]
    assert tuple(found.rand().shape) == (500,)
    assert 0 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) < 1
    assert float(normal.mean()) == pytest.approx(0, abs=0.08)
    assert float(normal.std()) == pytest.approx(1, abs=0.06)
    assert set(whole.unique().tolist()) == {-2, -1, 0, 1, 2}
    # Neighbors have nothing in common.
    assert abs(float(torch.corrcoef(torch.stack([normal[:-1, 0], normal[1:, 0]]))[0, 1])) < 0.15


def test_numbers_are_float32_also_where_the_default_is_another_type() -> None:
    expected = noise([0]).randn(3)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(noise([0]).randn(3), expected)
    finally:
        torch.set_default_dtype(torch.float32)
