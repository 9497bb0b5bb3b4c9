import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vw2_robot.models.dldm.fsq import FSQ

LEVELS = [(8, 5, 5, 5), (8,), (5,), (8, 8, 8, 8), (8, 8, 8, 5, 5, 5)]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_index_and_code_are_a_bijection(levels):
    fsq = FSQ(levels)
    every = torch.arange(fsq.vocabulary)
    assert torch.equal(fsq.indices(fsq.codes_of(every)), every)
    assert len(fsq.codes_of(every).unique(dim=0)) == fsq.vocabulary


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_index_is_reachable_from_its_analytic_inverse(levels):
    fsq = FSQ(levels)
    every = torch.arange(fsq.vocabulary)
    assert torch.equal(fsq.indices(fsq(fsq.pre_images_of(every))), every)


def test_paper_levels_give_1000_codes_with_the_documented_order():
    fsq = FSQ((8, 5, 5, 5))
    assert fsq.vocabulary == 1000
    digits = list(itertools.product(range(5), range(5), range(5), range(8)))  # first dimension fastest
    expected = torch.tensor([tuple(reversed(d)) for d in digits])
    assert torch.equal(fsq.fsq_dims_of(torch.arange(1000)), expected)
    assert int(fsq.indices(fsq(torch.zeros(4)))) == 500


def test_rounded_values_span_minus_four_to_three_for_eight_levels_and_minus_two_to_two_for_five():
    fsq = FSQ((8, 5, 5, 5))
    rounded = fsq(torch.randn(20000, 4) * 5) * fsq.half_width
    assert sorted(rounded[:, 0].round().unique().tolist()) == [-4, -3, -2, -1, 0, 1, 2, 3]
    assert sorted(rounded[:, 1].round().unique().tolist()) == [-2, -1, 0, 1, 2]


def test_gradient_is_that_of_bound_straight_through_the_rounding():
    fsq = FSQ((8, 5, 5, 5))
    z = torch.randn(64, 4, requires_grad=True)
    (fsq(z) * fsq.half_width).sum().backward()
    other = z.detach().clone().requires_grad_()
    fsq.bound(other).sum().backward()
    torch.testing.assert_close(z.grad, other.grad)
    zero = torch.zeros(4, requires_grad=True)
    fsq(zero).sum().backward()
    torch.testing.assert_close(zero.grad, torch.tensor([0.858, 1.001, 1.001, 1.001]), atol=1e-3, rtol=0)


def test_quantizer_stays_in_float32_under_autocast():
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    z = torch.randn(1000, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = fsq(z)
        indices = fsq.indices(codes)
    assert codes.dtype == torch.float32
    assert torch.equal(indices, fsq.indices(fsq(z)))


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4))
def test_any_vector_gets_a_code_inside_the_codebook(values):
    fsq = FSQ((8, 5, 5, 5))
    codes = fsq(torch.tensor(values))
    assert codes.abs().max() <= 1
    assert 0 <= int(fsq.indices(codes)) < 1000


@pytest.mark.parametrize("levels", [(), (1, 5)])
def test_levels_that_make_no_sense_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        FSQ(levels)
