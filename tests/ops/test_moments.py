"""The sums over activations: every backend against float64 and against their definition."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.moments import OP, moments
from compressor.kernels.token_rows import ranges

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def exact(x, mask=None):
    x = (x.reshape(x.shape[:-1].numel(), x.shape[-1]) if mask is None else x[mask]).double()
    return torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0)))


def assert_right(found, expected):
    # Sums of positive numbers: pairs, short ranges, then ranges; the sum of x as a share of sum |x|.
    bound = 1e-6 * expected[[0, 0, 2]] + 1e-30
    assert found.shape == expected.shape
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(
    "shape",
    [(1,), (1, 1), (7, 3), (2, 5, 33), (0, 4), (4, 0), (2, 0, 3), (129, 257)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_float64(device, backend, shape, dtype, masked):
    x = torch.randn(shape, device=device).to(dtype)
    mask = torch.rand(shape[:-1], device=device) > 0.4 if masked else None
    found = moments(x, mask, backend=backend)
    assert found.dtype == torch.float32
    assert_right(found, exact(x, mask))


@given(tokens=st.integers(0, 300), channels=st.integers(0, 200), masked=st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_shape(device, backend, tokens, channels, masked):
    x = torch.randn(tokens, channels, device=device)
    mask = torch.rand(tokens, device=device) > 0.5 if masked else None
    assert_right(moments(x, mask, backend=backend), exact(x, mask))


def test_tokens_left_out_may_hold_anything(device, backend):
    x = torch.randn(2, 6, 5, device=device)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], device=device).bool()
    x[0, 3:] = torch.nan
    x[0, 4] = torch.inf
    assert_right(moments(x, mask, backend=backend), exact(x, mask))
    assert moments(x, torch.zeros_like(mask), backend=backend).count_nonzero() == 0


def test_not_a_number_stays_in_its_channel(device, backend):
    x = torch.ones(9, 5, device=device)
    x[3, 2], x[4, 1] = torch.nan, torch.inf
    found = moments(x, backend=backend)
    assert found.isnan().any(0).tolist() == [False, False, True, False, False]
    assert found[:, 1].tolist() == [torch.inf] * 3


def test_views(device, backend):
    x = torch.randn(6, 90, device=device)
    assert_right(moments(x.T, backend=backend), exact(x.T))
    assert_right(moments(x[1:4, 7:50], backend=backend), exact(x[1:4, 7:50]))
    assert_right(moments(x[0].expand(4, 90), backend=backend), exact(x[0].expand(4, 90)))
    mask = (torch.rand(12, device=device) > 0.5)[::2]
    assert_right(moments(x, mask, backend=backend), exact(x, mask))
    column = mask[:1].expand(6)
    assert_right(moments(x, column, backend=backend), exact(x, column))


def test_extremes(device, backend):
    tiny = torch.full((40, 3), 2.0**-24, dtype=torch.float16, device=device)  # its least subnormal
    assert_right(moments(tiny, backend=backend), exact(tiny))
    large = torch.full((40, 3), -65504.0, dtype=torch.float16, device=device)
    assert_right(moments(large, backend=backend), exact(large))
    assert moments(torch.full((4, 2), -0.0, device=device), backend=backend).count_nonzero() == 0


def test_many_equal_tokens_stay_accurate(device, backend):
    """Equal terms round all the same way, so that errors add up."""
    interpreted = (device, backend) == ("cpu", "triton")  # a program for every few tokens
    tokens = 2_048 if interpreted else 262_144
    x = torch.full((tokens, 3), 0.1, device=device)
    found = moments(x, backend=backend).double()
    torch.testing.assert_close(found, exact(x), rtol=1e-5, atol=0)


def test_repeats_bit_for_bit(device, backend):
    x = torch.randn(200, 300, device=device).bfloat16()
    assert torch.equal(moments(x, backend=backend), moments(x, backend=backend))


def test_the_number_of_threads_changes_nothing():
    x = torch.randn(700, 3001).bfloat16()
    mask = torch.rand(700) > 0.3
    many = moments(x, mask)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(many, moments(x, mask))
    finally:
        torch.set_num_threads(threads)


def test_float64_is_exact():
    x = torch.randn(300, 5, dtype=torch.float64)
    torch.testing.assert_close(moments(x), exact(x), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_registration(masked):
    mask = torch.rand(2, 4) > 0.5 if masked else None
    torch.library.opcheck(OP.overload, (torch.randn(2, 4, 3), mask))


def test_compiles_without_a_break():
    x = torch.randn(5, 4)
    compiled = torch.compile(lambda x: moments(x) + 1, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), moments(x) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(()),), r"moments: x has shape \[\]; it must be \[..., channels\]"),
        (
            (torch.zeros(2, 4, 5), torch.ones(2, 3, dtype=torch.bool)),
            r"mask has shape \[2, 3\]; it must be \[2, 4\]",
        ),
        ((torch.zeros(2, 4), torch.ones(2)), "mask is torch.float32; it must be one of bool"),
        ((torch.zeros(3, 2).int(),), "x is torch.int32"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        moments(*arguments, backend=forced)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, for Triton")
def test_any_number_of_tokens_is_one_grid():
    """CUDA's grids have at most 65,535 blocks on their second axis."""
    for tokens, channels in [(1, 1), (5000, 128), (67_200_000, 8), (2**33, 1)]:
        _, down, each = ranges(tokens, channels, 16)
        assert down <= 65_535 and each % 16 == 0
        assert (down - 1) * each < tokens <= down * each
