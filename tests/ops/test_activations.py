"""Activations: values and slopes against autograd of torch's own functions."""

import pytest
import torch

from compressor.kernels.activations import ACTIVATIONS, FUNCTIONS, LIPSCHITZ


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_slope_follow_autograd(activation):
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64, requires_grad=True)
    expected = FUNCTIONS[activation](x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    found = ACTIVATIONS[activation](x.detach())
    # torch's own gelu subtracts two numbers near 1 where the value is small.
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found[1], slope, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lipschitz_constant_is_the_largest_slope(activation):
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    slope = ACTIVATIONS[activation](x)[1].abs().max().item()
    assert slope == pytest.approx(LIPSCHITZ[activation], abs=1e-5)
