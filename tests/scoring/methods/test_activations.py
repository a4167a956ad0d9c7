"""Slopes of activations, against differences of the functions that models call."""

import pytest
import torch
from transformers.activations import ACT2FN

from compressor.scoring.methods.activations import PLAIN, slope, value


@pytest.mark.parametrize("activation", PLAIN)
def test_the_slope_is_the_functions(activation):
    x = torch.linspace(-6, 6, 1002, dtype=torch.float64)
    step = 1e-6
    above, below = (ACT2FN[activation](x + d) for d in (step, -step))
    torch.testing.assert_close(
        slope(x, activation), (above - below) / (2 * step), atol=1e-8, rtol=0
    )
    assert value(x, activation).equal(ACT2FN[activation](x))


def test_relu_passes_nothing_on_at_its_kink():
    assert slope(torch.tensor([-1.0, 0.0, 2.0]), "relu").tolist() == [0.0, 0.0, 1.0]
