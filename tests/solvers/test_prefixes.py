"""Errors of all prefixes at once, against solving for each alone in float64."""

import pytest
import torch

from compressor.solvers.prefixes import plain_errors, refit_errors
from compressor.solvers.ridge import Moments, ridge

CHANNELS, OUTPUTS = 11, 5


def sums_of(inputs: torch.Tensor, targets: torch.Tensor) -> Moments:
    sums = Moments.empty(CHANNELS, OUTPUTS, inputs.device, torch.float64)
    sums.add(inputs, targets)
    return sums


@pytest.fixture
def problem():
    """Inputs and targets of fitted and held-back tokens, present weights and an order of channels."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)
    inputs = torch.randn(90, CHANNELS, generator=generator, dtype=torch.float64) @ mixed
    weight = torch.randn(OUTPUTS, CHANNELS, generator=generator, dtype=torch.float64)
    noise = torch.randn(90, OUTPUTS, generator=generator, dtype=torch.float64)
    order = torch.randperm(CHANNELS, generator=generator)
    return inputs, inputs @ weight.T + noise, weight, order


def test_plain(problem):
    inputs, targets, weight, order = problem
    found = plain_errors(sums_of(inputs, targets), weight, order)
    for k in range(CHANNELS + 1):
        kept = order[:k]
        error = (targets - inputs[:, kept] @ weight[:, kept].T).square().sum()
        torch.testing.assert_close(found[k], error)


@pytest.mark.parametrize("grid", [[1e-3], [1e-9, 1e-2, 1.0]])
def test_refits_are_the_repairs(problem, grid):
    """For each prefix the held-back error of the best lambda is what `ridge` reports."""
    inputs, targets, weight, order = problem
    fit, held = sums_of(inputs[:60], targets[:60]), sums_of(inputs[60:], targets[60:])
    found = refit_errors(fit, held, weight, order, grid)
    whole = fit.gram.diagonal().mean()
    for k in range(1, CHANNELS + 1):
        kept = order[:k]
        gram = fit.gram[kept][:, kept]
        # `ridge` counts lambda by the kept channels' diagonal.
        scaled = [value * (whole / gram.diagonal().mean()).item() for value in grid]
        _, _, errors = ridge(
            gram,
            fit.cross[:, kept],
            weight[:, kept],
            held.gram[kept][:, kept],
            held.cross[:, kept],
            held.energy,
            scaled,
        )
        assert found[k].item() == pytest.approx(min(errors), rel=1e-9)
    assert found[0] == held.energy


def test_dead_channels_leave_the_plain_error():
    """A gram of zeros has no scale for lambda and nothing to refit."""
    zeros, targets = torch.zeros(8, CHANNELS).double(), torch.ones(8, OUTPUTS).double()
    sums = sums_of(zeros, targets)
    weight = torch.ones(OUTPUTS, CHANNELS)
    found = refit_errors(sums, sums, weight, torch.arange(CHANNELS), [1e-2])
    assert found.tolist() == [8 * OUTPUTS] * (CHANNELS + 1)
