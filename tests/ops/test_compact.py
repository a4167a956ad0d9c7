"""Gathering kept rows and columns: bit for bit what indexing gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.kernels.compact import OP, WORDS, compact, compact_many

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [torch.uint8, torch.int16, torch.int32, torch.int64]


def kept(size: int, share: float = 0.5, device: str = "cpu") -> torch.Tensor:
    return torch.randperm(size, device=device)[: round(size * share)].sort().values


def indexed(weight, rows=None, columns=None):
    """By advanced indexing, which is not what the reference uses."""
    weight = weight if rows is None else weight[rows.long()]
    return weight if columns is None else weight[:, columns.long()]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    word = WORDS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(word), b.view(word))


def random_bits(shape, dtype, device) -> torch.Tensor:
    """Every bit pattern of the dtype: NaNs with payloads, infinities, subnormals, -0.0."""
    count = math.prod(shape) * dtype.itemsize
    flat = torch.randint(0, 256, (count,), dtype=torch.uint8, device=device)
    return flat.view(dtype).view(shape)


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 7), (17, 64), (129, 65), (40, 513), (67, 1024)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", FLOATS + SIZES, ids=str)
@pytest.mark.parametrize("which", ["rows", "columns", "both", "neither"])
def test_bits_are_copied(device, backend, shape, dtype, which):
    weight = random_bits(shape, dtype, device)
    rows = kept(shape[0], device=device) if which in ("rows", "both") else None
    columns = kept(shape[1], device=device) if which in ("columns", "both") else None
    found = compact(weight, rows, columns, backend=backend)
    assert found.is_contiguous()
    assert same_bits(found, indexed(weight, rows, columns))
    assert found.data_ptr() != weight.data_ptr() or found.numel() == 0


@given(
    rows=st.lists(st.booleans(), max_size=70),
    columns=st.lists(st.booleans(), max_size=70),
    run=st.sampled_from([1, 3, 16]),
    index=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=25, deadline=None)
def test_any_choice(device, backend, rows, columns, run, index):
    def chosen(flags):
        return torch.tensor(flags, dtype=torch.bool, device=device).nonzero()[:, 0].to(index)

    columns = [flag for flag in columns for _ in range(run)]
    weight = torch.randn(len(rows), len(columns), device=device).bfloat16()
    found = compact(weight, chosen(rows), chosen(columns), backend=backend)
    assert same_bits(found, indexed(weight, chosen(rows), chosen(columns)))


@pytest.mark.parametrize("run", [2, 8, 64])
def test_runs_of_columns(device, backend, run):
    weight = torch.randn(9, 640, device=device).bfloat16()
    columns = (
        kept(640 // run, device=device)[:, None] * run + torch.arange(run, device=device)
    ).flatten()
    assert same_bits(compact(weight, None, columns, backend=backend), weight[:, columns])


def test_everything_and_nothing(device, backend):
    weight = torch.randn(5, 6, device=device)
    all_rows, none = torch.arange(5, device=device), torch.arange(0, device=device)
    assert torch.equal(compact(weight, all_rows, backend=backend), weight)
    assert compact(weight, none, backend=backend).shape == (0, 6)
    assert compact(weight, all_rows, none, backend=backend).shape == (5, 0)
    assert compact(weight[:0], None, none, backend=backend).shape == (0, 0)
    assert compact_many([], [], []) == []


@pytest.mark.parametrize("dtype", [None, *FLOATS], ids=str)
def test_vectors_follow_rows(device, backend, dtype):
    bias = torch.randn(77, device=device)
    rows = kept(77, device=device)
    found = compact(bias, rows, dtype=dtype, backend=backend)
    assert same_bits(found, bias[rows].to(dtype or bias.dtype))
    assert same_bits(compact(bias[::2], backend=backend), bias[::2].clone())


def test_views(device, backend):
    weight = torch.randn(40, 50, device=device).bfloat16()
    rows, columns = kept(17, device=device), kept(25, device=device)
    part = weight[3:20, 5:30]  # rows that begin at odd addresses
    for view in (part, part.T.contiguous().T, weight[::2, ::2][:17, :25], weight.T[5:22, 3:28]):
        for r, c in ((rows, columns), (rows, None), (None, columns), (None, None)):
            assert same_bits(compact(view, r, c, backend=backend), indexed(view, r, c).contiguous())
    assert same_bits(compact(weight, rows.repeat_interleave(2)[::2], backend=backend), weight[rows])


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_rounds_once_as_torch_does(device, backend, source, target, scaled, chosen):
    weight = random_bits((11, 2048), source, device)
    columns = kept(2048, 0.6, device) if chosen else None
    width = 2048 if columns is None else len(columns)
    scale = torch.randn(width, device=device) if scaled else None
    expected = indexed(weight, None, columns).float()
    expected = (expected if scale is None else expected * scale).to(target)
    found = compact(weight, None, columns, scale, target, backend=backend)
    assert found.dtype == target
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~found.isnan()
    assert same_bits(found[numbers], expected[numbers])  # -0.0 and subnormals too


def test_every_half_rounds_to_even(device, backend):
    """Floats at and around the midpoints between neighbours, the hardest ones to round."""
    for target in (torch.bfloat16, torch.float16):
        exact = torch.arange(2**16, dtype=torch.int32).short().view(target).float()
        exact = exact[exact.isfinite()].sort().values
        middle = (exact[1:].double() + exact[:-1].double()).div(2).float()
        inputs = torch.stack((middle, middle.nextafter(exact[1:]), middle.nextafter(exact[:-1])))
        inputs = inputs.to(device)
        assert same_bits(compact(inputs, dtype=target, backend=backend), inputs.to(target))


def test_many_of_all_kinds_in_one_call(device, backend):
    """More jobs than one launch holds, of changing kinds, some empty."""
    sizes = torch.randint(0, 40, (70, 2)).tolist()
    dtypes = [torch.float32, torch.bfloat16, torch.uint8]
    weights = [random_bits(s, dtypes[i % 7 % 3], device) for i, s in enumerate(sizes)]
    rows = [kept(s[0], device=device) if i % 3 else None for i, s in enumerate(sizes)]
    columns = [kept(s[1], device=device) if i % 5 else None for i, s in enumerate(sizes)]
    found = compact_many(weights, rows, columns, backend=backend)
    for result, weight, r, c in zip(found, weights, rows, columns, strict=True):
        assert same_bits(result, indexed(weight, r, c))


def test_float64_is_multiplied_in_float64():
    weight, scale = torch.randn(4, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    columns = torch.tensor([0, 2, 5])
    assert torch.equal(compact(weight, None, columns, scale), weight[:, columns] * scale)
    assert compact(weight, None, columns, scale, torch.float32).dtype == torch.float32


def test_the_number_of_threads_changes_nothing():
    weight = torch.randn(700, 900).bfloat16()
    rows, columns, scale = kept(700), kept(900), torch.rand(450)
    many = compact(weight, rows, columns, scale)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert same_bits(many, compact(weight, rows, columns, scale))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offsets_beyond_31_bits():
    weight = torch.randint(0, 256, (3, 2**30 + 8), dtype=torch.uint8, device="cuda")
    columns = torch.arange(0, 2**30 + 8, 2, device="cuda")
    rows = torch.tensor([0, 2], device="cuda")
    found = compact(weight, rows, columns)
    assert torch.equal(found, weight[::2, ::2])
    assert torch.equal(compact(weight, rows), weight[::2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    weight = torch.zeros(4096, 4096, device="cuda")
    columns = kept(4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        weight.fill_(3.0)
        found = compact(weight, None, columns)
        assert bool((found == 3.0).all())


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=str)
def test_registration(dtype):
    weights = [torch.randn(4, 6), torch.randn(4)]
    rows = [torch.tensor([0, 3])] * 2
    arguments = (weights, rows, [torch.tensor([1, 2, 5]), None], [torch.rand(3), None], dtype)
    torch.library.opcheck(OP.overload, arguments)


def test_compiles_without_a_break():
    weight, rows = torch.randn(5, 4), torch.tensor([1, 4])
    compiled = torch.compile(lambda w: compact(w, rows) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(weight), weight[rows] + 1)


def test_shapes_without_data():
    weight = torch.empty(8, 6, dtype=torch.bfloat16, device="meta")
    found = compact(weight, torch.empty(3, dtype=torch.int64, device="meta"))
    assert (found.shape, found.dtype, found.device.type) == ((3, 6), torch.bfloat16, "meta")


WEIGHT = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([0, 4], None, r"rows holds 4 at position 1; it must lie between 0 and 3"),
        ([-1, 2], None, r"rows holds -1 at position 0"),
        (None, [0, 3, 3], r"columns holds 3 at position 2, after 3; it must be strictly ascending"),
        ([1, 2], [5, 1], r"columns holds 1 at position 1, after 5"),
        ([1, 2], [1, 6, 2], r"columns holds 6 at position 1; it must lie between 0 and 5"),
    ],
)
def test_lists_are_checked(device, backend, rows, columns, message):
    lists = [None if k is None else torch.tensor(k, device=device) for k in (rows, columns)]
    with pytest.raises(ValueError, match=f"compact: {message}"):
        compact(WEIGHT.to(device), *lists, backend=backend)


def test_the_wrong_list_of_many_is_named(device, backend):
    good, bad = torch.tensor([0, 1], device=device), torch.tensor([0, 4], device=device)
    weight = WEIGHT.to(device)
    with pytest.raises(ValueError, match=r"compact: rows\[2\] holds 4 at position 1"):
        compact_many([weight] * 3, [good, None, bad], [None, bad, bad], backend=backend)


class Waits(TorchDispatchMode):
    """Counts the reads of a number, each of which on CUDA waits for the device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **keywords or {})


def test_what_was_checked_is_not_read_again(device, backend):
    weight, rows = WEIGHT.to(device), torch.tensor([0, 3], device=device)
    for check, most in ((True, 1), (False, 0)):
        with Waits() as waits:
            found = compact(weight, rows, check=check, backend=backend)
        if backend != "emulated":  # which runs it twice, and looks at what lies around
            assert waits.count == most
        assert torch.equal(found, weight[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2, 2),), r"weight has 3 dimensions; it must have 1 or 2"),
        ((torch.zeros(3), None, torch.tensor([0])), "weight is a vector"),
        ((WEIGHT, torch.tensor([0.0])), r"rows is torch.float32; it must be one of int64, int32"),
        ((WEIGHT, torch.tensor([[0]])), r"rows has shape \[1, 1\]; it must be \[any\]"),
        (
            (WEIGHT, None, torch.tensor([0]), torch.ones(6)),
            r"scale has shape \[6\]; it must be \[1\]",
        ),
        ((WEIGHT.int(), None, None, torch.ones(6)), "weight is torch.int32"),
        ((WEIGHT.int(), None, None, None, torch.float16), "weight is torch.int32"),
        ((WEIGHT, None, None, None, torch.float64), "dtype is torch.float64"),
        ((WEIGHT.to(torch.complex128),), "weight is torch.complex128, of 16 bytes"),
        ((torch.zeros(1).expand(2**32 + 1),), "weight has 4294967297 columns, more than 2"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=f"compact: {message}"):
        compact(*arguments, backend=forced)


def test_other_devices_and_layouts_are_named():
    with pytest.raises(ValueError, match="compact: rows is on meta, but other tensors are on cpu"):
        compact(WEIGHT, torch.zeros(1, dtype=torch.int64, device="meta"), backend="ref")
    with pytest.raises(TypeError, match=r"compact: weight is torch.sparse_coo"):
        compact(WEIGHT.to_sparse(), backend="ref")


def test_lists_of_other_lengths_are_named():
    with pytest.raises(ValueError, match=r"compact: 1 rows for 2 weights"):
        compact_many([WEIGHT, WEIGHT], [None])
