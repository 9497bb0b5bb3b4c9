import pytest
import torch
import torch.nn.functional as F

from vw2_robot.models.dense import FEWEST_TOKENS, dense


@pytest.mark.parametrize("shape", [(2, FEWEST_TOKENS // 2, 6), (18, 65, 6), (FEWEST_TOKENS + 1, 6), (3, 6)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_dense_layer_and_its_gradients_are_those_of_linear(shape, with_bias):
    x, weight = (torch.randn(size, requires_grad=True) for size in (shape, (5, 6)))
    bias = torch.randn(5, requires_grad=True) if with_bias else None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    y, reference = dense(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(y, reference, atol=1e-5, rtol=1e-5)
    assert y.is_contiguous()
    grad = torch.randn_like(y)
    for found, expected in zip(*(torch.autograd.grad(out, inputs, grad) for out in (y, reference)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_many_tokens_of_float32_are_a_convolution_and_autocast_keeps_its_own_products():
    x, weight = torch.randn(FEWEST_TOKENS, 6, requires_grad=True), torch.randn(5, 6)
    assert "View" in type(dense(x, weight, None).grad_fn).__name__
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dense(x, weight, None).dtype == torch.bfloat16
