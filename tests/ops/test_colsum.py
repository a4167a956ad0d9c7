"""Weighted column sums: every backend against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.colsum import OP, colsum

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def exact(weight, scale, p):
    powers = weight.double().abs() ** p
    return powers.sum(0) if scale is None else scale.double() @ powers


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 7), (0, 4), (4, 0), (129, 65), (513, 257)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_float64(device, backend, shape, p, dtype, scaled):
    weight = torch.randn(shape, device=device).to(dtype)
    scale = torch.rand(shape[0], device=device) if scaled else None
    found = colsum(weight, scale, p, backend=backend)
    assert found.dtype == torch.float32
    # All terms are positive: a float32 sum of n is off by n eps at most, and by far less in practice.
    torch.testing.assert_close(found.double(), exact(weight, scale, p), rtol=2e-6, atol=1e-30)


@given(rows=st.integers(0, 200), columns=st.integers(0, 200), p=st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_any_shape(device, backend, rows, columns, p):
    weight = torch.randn(rows, columns, device=device)
    found = colsum(weight, None, p, backend=backend)
    torch.testing.assert_close(found.double(), exact(weight, None, p), rtol=2e-6, atol=1e-30)


def test_views(device, backend):
    weight = torch.randn(6, 9, device=device)
    torch.testing.assert_close(colsum(weight.T, backend=backend), weight.abs().sum(1))
    part = torch.randn(40, 50, device=device)[3:20, 5:30]
    torch.testing.assert_close(colsum(part, backend=backend), part.abs().sum(0))


def test_not_a_number_stays_in_its_column(device, backend):
    weight = torch.ones(3, 5, device=device)
    weight[1, 2] = float("nan")
    found = colsum(weight, backend=backend)
    assert found.isnan().tolist() == [False, False, True, False, False]


def test_the_number_of_threads_changes_nothing():
    weight = torch.randn(700, 3000).bfloat16()
    many = colsum(weight)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(many, colsum(weight))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scaled", [False, True])
def test_registration(scaled):
    scale = torch.rand(4) if scaled else None
    torch.library.opcheck(OP.overload, (torch.randn(4, 3), scale, 2))


def test_compiles_without_a_break():
    weight = torch.randn(5, 4)
    compiled = torch.compile(lambda w: colsum(w, None, 2) + 1, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight), weight.square().sum(0) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"weight has shape \[3\]; it must be \[any, any\]"),
        ((torch.zeros(3, 2), None, 3), "p is 3"),
        ((torch.zeros(3, 2), torch.zeros(2)), r"scale has shape \[2\]; it must be \[3\]"),
        ((torch.zeros(3, 2).int(),), "weight is torch.int32"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        colsum(*arguments, backend=forced)
