"""What a token counts."""

import pytest
import torch

from compressor.solvers.weighing import rates, wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rates_are_in_float32_or_better(dtype):
    stream = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=dtype)
    exact = torch.promote_types(dtype, torch.float32)
    assert wide(stream).dtype == rates(stream).dtype == exact
    expected = torch.tensor([[12.5**-0.5], [1e6]], dtype=exact)
    torch.testing.assert_close(rates(stream), expected)
