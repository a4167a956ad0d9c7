"""The sums over activations, against float64 and against their definition."""

import pytest
import torch

from compressor.kernels.moments import ACTIVATIONS, LIPSCHITZ, gated_moments, moments

SHAPES = [(1, 1), (7, 3), (2, 5, 33), (0, 4), (129, 257)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_float64(shape, dtype):
    x = torch.randn(shape).to(dtype)
    exact = x.double().reshape(-1, shape[-1])
    expected = torch.stack((exact.abs().sum(0), exact.sum(0), exact.square().sum(0)))
    found = moments(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * len(exact))


def test_mask_leaves_padding_out():
    x = torch.randn(2, 6, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    poisoned = x.clone()
    poisoned[0, 3:] = torch.nan
    torch.testing.assert_close(moments(poisoned, mask), moments(x[0, :3]) + moments(x[1]))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask is \(2, 3\), x is \(2, 4, 5\)"):
        moments(torch.randn(2, 4, 5), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_moments_follow_autograd(activation):
    phi = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[activation]
    gate = torch.randn(40, 9, dtype=torch.float64, requires_grad=True)
    up = torch.randn(40, 9, dtype=torch.float64)
    value = phi(gate)
    (slope,) = torch.autograd.grad(value.sum(), gate)
    expected = torch.stack(
        (
            value.abs().sum(0),
            up.abs().sum(0),
            value.square().sum(0),
            (up * slope).square().sum(0),
        )
    )
    torch.testing.assert_close(gated_moments(gate.detach(), up, activation), expected.detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lipschitz_constant_is_the_largest_slope(activation):
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    slope = ACTIVATIONS[activation](x)[1].abs().max().item()
    assert slope == pytest.approx(LIPSCHITZ[activation], abs=1e-5)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'relu2'"):
        gated_moments(torch.zeros(2, 2), torch.zeros(2, 2), "relu2")
