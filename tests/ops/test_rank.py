"""Ranks within rows: every backend against numpy's stable argsort, exactly."""

from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compressor.kernels.rank as module
from compressor.kernels.rank import OP, rank

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 7), (0, 4), (4, 0), (67, 64), (5, 513), (3, 1021), (2, 16_392), (1, 28_673)]


def expected(weight, scale=None):
    importance = weight.float().cpu() * (1.0 if scale is None else scale.float().cpu())
    order = numpy.argsort(importance.abs().numpy(), axis=1, kind="stable")
    ranks = numpy.empty_like(order)
    numpy.put_along_axis(ranks, order, numpy.arange(weight.shape[1])[None], axis=1)
    return torch.from_numpy(ranks)


def check(found, wanted):
    assert found.dtype == torch.uint16 and found.shape == wanted.shape
    assert torch.equal(found.cpu().to(torch.int64), wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_a_stable_sort(device, backend, shape, dtype, scaled):
    weight = torch.randn(shape, device=device).to(dtype)
    scale = torch.rand(shape[1], device=device) if scaled else None
    check(rank(weight, scale, backend=backend), expected(weight, scale))


def test_by_hand(device, backend):
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.0], [0.0, -0.0, 5.0, 0.0]], device=device)
    assert rank(weight, backend=backend).tolist() == [[3, 1, 2, 0], [0, 1, 3, 2]]
    scale = torch.tensor([0.1, 1.0, 1.0, 9.0], device=device)
    assert rank(weight, scale, backend=backend).tolist() == [[1, 2, 3, 0], [0, 1, 3, 2]]


@pytest.mark.parametrize("columns", [40, 700, 9001])
def test_ties_go_by_column(device, backend, columns):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, 1e-40, -1e-40, 3e38, torch.inf, -torch.inf])
    weight = values[torch.randint(len(values), (6, columns))].to(device)
    weight[0] = 7.0
    check(rank(weight, backend=backend), expected(weight))
    scale = (torch.arange(columns, device=device) % 3).float()
    scale[scale == 0] = 1e-30
    check(rank(weight, scale, backend=backend), expected(weight, scale))


def test_not_a_number_comes_last(device, backend):
    weight = torch.randn(4, 300)
    weight[:, 7] = torch.inf
    for column, bits in [(0, 0x7FC00000), (5, -1), (8, 0x7F800001), (299, -0x3FFFFF)]:
        weight.view(torch.int32)[1:, column] = bits
    assert weight[1].isnan().sum() == 4
    found = rank(weight.to(device), backend=backend)
    check(found, expected(weight))
    places = found[1].tolist()
    assert [places[c] for c in (7, 0, 5, 8, 299)] == [295, 296, 297, 298, 299]


def test_every_half_precision_number(device, backend):
    every = torch.arange(65_535, dtype=torch.int32).to(torch.int16)[None]
    for dtype in (torch.float16, torch.bfloat16):
        weight = every.view(dtype).to(device)
        check(rank(weight, backend=backend), expected(weight))


@given(rows=st.integers(0, 9), columns=st.integers(0, 600), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_shape(device, backend, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).round(decimals=1).to(device)
    check(rank(weight, backend=backend), expected(weight))


def test_views(device, backend):
    weight = torch.randn(90, 40, device=device)
    check(rank(weight.T, backend=backend), expected(weight.T))
    check(rank(weight[3:20, 5:30], backend=backend), expected(weight[3:20, 5:30]))
    check(rank(weight[::2], backend=backend), expected(weight[::2]))
    check(rank(weight[:1].expand(5, 40), backend=backend), expected(weight[:1].expand(5, 40)))


def test_float64_is_ranked_in_float64():
    weight = 1.0 + torch.arange(5, 0, -1, dtype=torch.float64)[None] * 1e-12
    assert rank(weight).tolist() == [[4, 3, 2, 1, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("limit", [512, 1024, 7168])
def test_rows_in_parts(limit, monkeypatch):
    """Only a CUDA block has too little memory for a row."""
    monkeypatch.setattr(module, "columns_in_shared", lambda device: limit)
    monkeypatch.setattr(module, "SCRATCH", 40_000)
    for columns in (513, 4096, 10_007):
        weight = torch.randn(7, columns, device="cuda").round(decimals=2)
        check(rank(weight, backend="ext"), expected(weight))


def test_repeats_and_the_number_of_threads_changes_nothing():
    weight = torch.randn(300, 500).bfloat16()
    many = rank(weight).to(torch.int32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(many, rank(weight).to(torch.int32))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scaled", [False, True])
def test_registration(scaled):
    scale = torch.rand(5) if scaled else None
    torch.library.opcheck(OP.overload, (torch.randn(4, 5), scale))


def test_compiles_without_a_break():
    weight = torch.randn(5, 9)
    function = torch.compile(
        lambda w: rank(w).to(torch.int32) + 1, backend="aot_eager", fullgraph=True
    )
    assert torch.equal(function(weight).to(torch.int64), expected(weight) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"weight has shape \[3\]"),
        ((torch.zeros(1, 65_536),), "weight has 65536 columns; at most 65535"),
        ((torch.zeros(3, 2), torch.zeros(3)), r"scale has shape \[3\]; it must be \[2\]"),
        ((torch.zeros(3, 2).int(),), "weight is torch.int32"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        rank(*arguments, backend=forced)


def test_threads_do_not_disturb_each_other(device, backend):
    """Rows of several widths at a time need several amounts of a CUDA block's shared memory."""
    rows = 1 if backend == "emulated" else 4
    weights = [
        torch.randn(rows, columns, device=device) for columns in (8_000, 12_000, 20_000, 30_000)
    ]
    wanted = [expected(weight) for weight in weights]

    def run(which):
        for _ in range(200 if device == "cuda" else 2):
            found = rank(weights[which], backend=backend)
        check(found, wanted[which])

    with ThreadPoolExecutor(len(weights)) as pool:
        list(pool.map(run, range(len(weights))))
