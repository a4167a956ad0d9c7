"""Weighted column sums against float64."""

import pytest
import torch

from compressor.kernels.colsum import ROWS, colsum


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (ROWS, 5), (2 * ROWS + 1, 33), (0, 4)], ids=str)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_float64(shape, p, dtype, scaled):
    weight = torch.randn(shape).to(dtype)
    scale = torch.rand(shape[0]) if scaled else None
    powers = weight.double().abs() ** p
    expected = powers.sum(0) if scale is None else scale.double() @ powers
    found = colsum(weight, scale, p)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_transposed_view_gives_row_sums():
    weight = torch.randn(6, 9)
    torch.testing.assert_close(colsum(weight.T), weight.abs().sum(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), "must be a matrix"),
        ((torch.zeros(3, 2), None, 3), "p must be 1 or 2, not 3"),
        ((torch.zeros(3, 2), torch.zeros(2)), "scale is"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        colsum(*arguments)
