"""One regression: its record, against sums and errors written out in float64."""

import pytest
import torch

from compressor.errors import InputError
from compressor.solvers.regression import regress


def batches(noise: float, sizes=(50, 70, 40)):
    torch.manual_seed(0)
    truth = torch.randn(3, 6, dtype=torch.float64)
    inputs = [torch.randn(n, 6, dtype=torch.float64) for n in sizes]
    return [(x, x @ truth.T + noise * torch.randn(len(x), 3).double()) for x in inputs], truth


def test_new_parameters_and_what_is_recorded():
    pairs, truth = batches(0.1)
    present = truth + 0.5
    found, record = regress(iter(pairs), 2, present, torch.float64, [1e-3, 1e9], "here")
    x, t = (torch.cat(parts) for parts in zip(*pairs[:2], strict=True))
    penalty = 1e-3 * x.square().sum() / 6 * torch.eye(6).double()
    expected = present + (t - x @ present.T).T @ x @ torch.linalg.inv(x.T @ x + penalty)
    torch.testing.assert_close(found, expected)
    assert record["lambda"] == 1e-3
    x, t = pairs[2]
    for key, weight in (("before", present), ("after", expected)):
        share = (t - x @ weight.T).square().sum() / t.square().sum()
        assert record[key] == pytest.approx(share.item())


def test_present_ones_that_are_better_stay():
    pairs, truth = batches(0.0)
    present = truth + 1e-3
    pairs[:2] = [(x, -t) for x, t in pairs[:2]]
    found, record = regress(iter(pairs), 2, present, torch.float64, [1e-3, 1.0], "here")
    assert found is None and record["lambda"] is None and record["before"] == record["after"] > 0


def test_what_is_right_has_no_record():
    pairs, truth = batches(0.0)
    assert regress(iter(pairs), 2, truth, torch.float64, [1e-3], "here") == (None, None)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("part", [0, 1])
def test_activations_that_are_not_finite(batch, part):
    pairs, truth = batches(0.0)
    pairs[batch][part][3, 1] = float("inf")
    with pytest.raises(InputError, match="activations of block 2 here are"):
        regress(iter(pairs), 2, truth, torch.float64, [1e-3], "block 2 here")
