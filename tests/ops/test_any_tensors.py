"""The extension's operators on whatever tensors there may be: none of them reads or writes beside its
tensors (`make asan`), and where numbers lie in memory changes none of what comes out.

Shapes down to nothing, views that are transposed, stepped, repeated or begin at any byte, and numbers
from denormal to infinite and none. What is no argument is refused by name, before native code sees it.
"""

import os
from random import Random

import pytest
import torch
from counting import NEEDS_EXTENSION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.kernels import (
    besa_cut,
    besa_mask,
    colsum,
    compact,
    eliminate,
    moments,
    rank,
    swiglu_moments,
    taylor,
)
from compressor.kernels.activations import ACTIVATIONS

pytestmark = NEEDS_EXTENSION
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))  # of each operator; `make asan` has more
SIZES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ODD = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e-38, 3e38, 65504.0, 1.0)


class Maker:
    """Tensors by the choices of a `Random`."""

    def __init__(self, random: Random):
        self.random = random
        self.numbers = torch.Generator().manual_seed(random.randrange(1 << 30))

    def size(self) -> int:
        return self.random.choice(SIZES)

    def dtype(self) -> torch.dtype:
        return self.random.choice(FLOATS)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        values = torch.randn(shape, generator=self.numbers)
        kind = self.random.randrange(4)
        if kind == 0:
            values = values.round()  # many are equal
        elif kind == 1 and values.numel():
            places = torch.rand(shape, generator=self.numbers) < 0.2
            odd = torch.randint(len(ODD), shape, generator=self.numbers)
            values = torch.where(places, torch.tensor(ODD)[odd], values)
        return self.placed(values.to(dtype))

    def integers(self, low: int, high: int, *shape: int, dtype=torch.int32) -> torch.Tensor:
        values = torch.randint(low, max(high, low + 1), shape, generator=self.numbers)
        return self.placed(values.to(dtype))

    def placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers somewhere else in memory, in another order."""
        kind = self.random.randrange(6)
        if kind == 0 and tensor.dim() > 1:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == 1:  # every other one, behind the first
            wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
            wide[..., 1::2] = tensor
            return wide[..., 1::2]
        if kind == 2:  # rows with something between them
            wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
            wide[..., : tensor.shape[-1]] = tensor
            return wide[..., : tensor.shape[-1]]
        if kind == 3 and tensor.dim() > 1 and tensor.shape[0]:
            return tensor[:1].expand(tensor.shape)  # one row, again and again
        if kind == 4 and tensor.numel():  # as files with an odd header have them
            memory = bytearray(tensor.nbytes + 1)
            moved = torch.frombuffer(memory, dtype=tensor.dtype, offset=1, count=tensor.numel())
            return moved.view(tensor.shape).copy_(tensor)
        return tensor


def for_besa_cut(make):
    groups, candidates = make.size(), make.random.choice((2, 3, 17, 100))
    columns = make.integers(0, 2**31 - 1, groups)
    seed = make.random.choice((None, 0, 2**63, -1))
    return make.floats(groups, candidates), columns, seed, make.random.choice((0, 2**40, -3))


def matrices(make):
    """A weight, ranks that are any numbers, and groups of rows."""
    groups, height, columns = make.size(), make.random.randint(1, 5), make.size()
    weight = make.floats(groups * height, columns, dtype=make.dtype())
    ranks = make.integers(0, make.random.choice((1, max(1, columns), 65535)), *weight.shape)
    return groups, weight, make.placed(ranks.to(torch.uint16))


def for_besa_mask(make):
    listed = [matrices(make) for _ in range(make.random.randint(1, 3))]
    cuts = [make.integers(make.random.choice((0, 0, -5)), w.shape[1] + 1, g) for g, w, _ in listed]
    return [w for _, w, _ in listed], [r for *_, r in listed], None, cuts


def for_besa_mask_backward(make):
    listed = [matrices(make) for _ in range(make.random.randint(1, 3))]
    weights, ranks = [w for _, w, _ in listed], [r for *_, r in listed]
    grads = [make.floats(*w.shape, dtype=w.dtype) for w in weights]
    return grads, weights, ranks, [g for g, *_ in listed], make.random.choice((2, 3, 17, 100))


def for_colsum(make):
    rows, columns = make.size(), make.size()
    scale = make.floats(rows) if make.random.random() < 0.5 else None
    return make.floats(rows, columns, dtype=make.dtype()), scale, make.random.choice((1, 2))


def kept(make, size: int):
    """Places to keep of so many: ascending ones, or any."""
    if make.random.random() < 0.3:
        return None
    if make.random.random() < 0.2:
        return make.integers(-2, size + 2, make.random.randint(0, 5), dtype=torch.int64)
    return make.placed(torch.arange(size)[torch.rand(size, generator=make.numbers) < 0.5])


def for_compact(make):
    weights, rows, columns, scales = [], [], [], []
    dtype = make.dtype()
    for _ in range(make.random.randint(1, 3)):
        vector = make.random.random() < 0.2
        shape = (make.size(),) if vector else (make.size(), make.size())
        weights.append(make.floats(*shape, dtype=dtype))
        rows.append(kept(make, shape[0]))
        columns.append(None if vector else kept(make, shape[1]))
        width = 0 if vector else shape[1] if columns[-1] is None else len(columns[-1])
        scales.append(make.floats(width) if not vector and make.random.random() < 0.5 else None)
    return weights, rows, columns, scales, make.random.choice((None, *FLOATS))


def for_eliminate(make):
    channels = make.size()
    exact = make.random.choice((torch.float32, torch.float64))
    tensors = [
        make.floats(channels, channels),
        make.floats(channels, channels),
        make.floats(channels),
    ]
    return *(t.to(exact).contiguous() for t in tensors), make.random.randint(0, channels)


def activations(make):
    tokens = make.random.choice(((make.size(),), (make.size(), make.random.randint(1, 3))))
    mask = make.placed(torch.rand(tokens, generator=make.numbers) < 0.5)
    shape = (*tokens, make.size())
    return shape, make.dtype(), mask if make.random.random() < 0.5 else None


def for_moments(make):
    shape, dtype, mask = activations(make)
    return make.floats(*shape, dtype=dtype), mask


def for_rank(make):
    rows, columns = make.size(), make.size()
    scale = make.floats(columns) if make.random.random() < 0.5 else None
    return make.floats(rows, columns, dtype=make.dtype()), scale


def for_swiglu_moments(make):
    shape, dtype, mask = activations(make)
    pair = [make.floats(*shape, dtype=dtype) for _ in range(2)]
    return *pair, make.random.choice([*ACTIVATIONS]), mask, make.random.random() < 0.5


def for_taylor(make):
    row_group, column_group = make.random.randint(1, 3), make.random.randint(1, 3)
    rows, columns, sums = make.size(), make.size(), make.random.choice((3, 5))
    shape = rows * row_group, columns * column_group
    pair = [make.floats(*shape, dtype=make.dtype()) for _ in range(2)]
    sides = [torch.zeros(sums, rows), torch.zeros(sums, columns)]
    nonfinite, scale = torch.zeros((), dtype=torch.int64), make.random.choice((1.0, 0.0, 1e30))
    return *pair, *sides, nonfinite, row_group, column_group, scale


CASES = {
    "besa_cut": (besa_cut.OP, for_besa_cut),
    "besa_mask": (besa_mask.OP, for_besa_mask),
    "besa_mask_backward": (besa_mask.BACKWARD, for_besa_mask_backward),
    "colsum": (colsum.OP, for_colsum),
    "compact": (compact.OP, for_compact),
    "eliminate": (eliminate.OP, for_eliminate),
    "moments": (moments.OP, for_moments),
    "rank": (rank.OP, for_rank),
    "swiglu_moments": (swiglu_moments.OP, for_swiglu_moments),
    "taylor": (taylor.OP, for_taylor),
}


# What these round may differ: a transposed weight is summed up along its memory, and a part of the
# other is torch's, whose exponential rounds otherwise where numbers are not neighbours.
ROUNDED = {"taylor", "swiglu_moments"}


def copied(argument):
    """The same argument where tensors lie one number behind the other."""
    if isinstance(argument, torch.Tensor):
        return argument.clone(memory_format=torch.contiguous_format)
    return [copied(each) for each in argument] if isinstance(argument, list) else argument


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in value for t in tensors(each)] if isinstance(value, list | tuple) else []


def run(op, arguments) -> list[torch.Tensor] | None:
    """What is written, also into arguments; None where they are refused by the operator's name."""
    try:
        given = op(*arguments, backend="ext")
    except (ValueError, TypeError) as error:
        assert str(error).startswith(op.name)
        return None
    return tensors(given) or tensors(list(arguments))


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)
@given(random=st.randoms(use_true_random=False))
def test_where_numbers_lie_changes_nothing(name, random):
    op, arguments_for = CASES[name]
    arguments = arguments_for(Maker(random))
    plain = [copied(argument) for argument in arguments]
    found, expected = run(op, arguments), run(op, plain)
    assert (found is None) == (expected is None)
    for one, other in zip(found or (), expected or (), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if name not in ROUNDED:
            bits = {4: torch.int32, 2: torch.int16, 8: torch.int64}[one.element_size()]
            assert torch.equal(one.view(bits), other.view(bits))


def test_every_native_operator_is_called():
    from compressor import _C

    assert {name.removesuffix("_cpu") for name in dir(_C) if name.endswith("_cpu")} == {*CASES}
