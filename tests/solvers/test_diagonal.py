"""Factors of channels against least squares channel by channel."""

import pytest
import torch

from compressor.solvers.diagonal import scale


def batches(noise: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    factors = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    inputs = [torch.randn(40, 6, dtype=torch.float64) for _ in range(4)]
    return [(x, x * factors + noise * torch.randn_like(x)) for x in inputs]


def test_exact_factors_are_found():
    factors, told = scale(iter(batches(0)), 3, (0.0, 0.1))
    torch.testing.assert_close(factors, torch.linspace(0.5, 2, 6, dtype=torch.float64))
    assert told["lambda"] == 0 and told["after"] < 1e-20 < told["before"]


@pytest.mark.parametrize("lambda_", [0.0, 0.3])
def test_the_solution_is_that_of_each_channel(lambda_):
    pairs = batches(0.4)
    factors, told = scale(iter(pairs), 3, (lambda_,))
    x, t = (torch.cat([pair[i] for pair in pairs[:3]]) for i in range(2))
    damped = lambda_ * x.square().sum(0).mean()
    expected = 1 + ((t - x) * x).sum(0) / (x.square().sum(0) + damped)
    torch.testing.assert_close(factors, expected)
    held, aim = pairs[3]
    error = (held * expected - aim).square().sum() / aim.square().sum()
    assert told["after"] == pytest.approx(error.item())


def test_nothing_is_scaled_where_that_is_worse_or_nothing_is_there():
    pairs = batches(0)
    away = [*pairs[:3], (pairs[3][0], pairs[3][0])]
    factors, told = scale(iter(away), 3, (0.0,))
    assert factors is None and told == {"lambda": None, "before": 0.0, "after": 0.0}
    zeros = torch.zeros(5, 6)
    assert scale(iter([(zeros, zeros)] * 2), 1, (0.0,)) == (None, None)
