"""Gathering what is kept:  out[i, j] = weight[rows[i], columns[j]] * scale[j].

This is the cut itself: gate and up keep rows, down and o keep columns, q, k and v keep the rows of
their heads, and biases (vectors) follow the rows. Many tensors of a block go in one call, on CUDA
in one launch. Without a scale or a change of dtype the bits are copied, whatever they mean.

Reads each kept row (only the touched 32-byte sectors of it on CUDA) and writes each kept element.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compressor.kernels.checks import FLOATS, check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.native import DTYPES, in_rows, native

# Bits are moved as integers of the same size: a NaN keeps its payload, and any dtype will do.
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
INDICES = (torch.int64, torch.int32)
COLUMNS = 2**32  # the CPU keeps its column lists in 32 bits

Tensors = Sequence[torch.Tensor]
Choices = Sequence[torch.Tensor | None]


def compact(
    weight: torch.Tensor,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    check: bool = True,
    backend: str | None = None,
) -> torch.Tensor:
    """weight [rows, columns] -> [kept rows, kept columns], new and contiguous, never differentiable.

    rows, columns: int64 or int32, strictly ascending; None keeps all. A vector has only rows.
    scale [kept columns]: multiplied in float32 and rounded once, to nearest even.
    dtype: float32, bfloat16 or float16; None keeps the weight's, which without a scale may be any
        of 1 to 8 bytes an element. float64 is the reference's and is multiplied in float64.

    ValueError names a list that is not ascending or leaves the weight, with its value. On CUDA this
    check waits for the device, once a call; check=False is for lists that `check_kept` has seen where
    they were made. A wrong one then reads memory that is not the weight's.
    """
    lists = [rows], [columns], [scale]
    return compact_many([weight], *lists, dtype, check=check, backend=backend)[0]


def compact_many(
    weights: Tensors,
    rows: Choices | None = None,
    columns: Choices | None = None,
    scales: Choices | None = None,
    dtype: torch.dtype | None = None,
    *,
    check: bool = True,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """`compact` of each weight with its own rows, columns and scale, all on one device.

    The lists have an entry (a tensor or None) for each weight; None stands for a list of None.
    """
    if not weights:
        return []
    none = [None] * len(weights)
    lists = [none if each is None else list(each) for each in (rows, columns, scales)]
    return OP(list(weights), *lists, dtype, check, backend=backend)


def _ref(weights, rows, columns, scales, dtype, check=True):
    if check:
        check_kept(weights, rows, columns)
    jobs = zip(weights, rows, columns, scales, strict=True)
    return [_ref_one(*job, dtype) for job in jobs]


def _ref_one(weight, rows, columns, scale, dtype):
    out = weight.view(WORDS[weight.element_size()])
    out = out if rows is None else out.index_select(0, rows)
    out = out if columns is None else out.index_select(1, columns)
    out = out.view(weight.dtype)
    if scale is not None:
        exact = exact_dtype(weight)
        out = out.to(exact) * scale.to(exact)
    whole = rows is None and columns is None
    dtype = weight.dtype if dtype is None else dtype
    return out.to(dtype, copy=whole, memory_format=torch.contiguous_format)


def _ext(weights, rows, columns, scales, dtype, check=True):
    if check:
        check_kept(weights, rows, columns)
    results, table, used = [], [], []
    for weight, *kept, scale in zip(weights, rows, columns, scales, strict=True):
        out = torch.empty(_shape(weight, *kept), dtype=dtype or weight.dtype, device=weight.device)
        results.append(out)
        if out.numel() == 0:
            continue
        if weight.dim() == 1:  # a matrix of one row, whose columns the list chooses
            weight, kept = weight[None], [None, kept[0]]
        weight = in_rows(weight)
        lists = [None if k is None else k.long().contiguous() for k in kept]
        scale = None if scale is None else scale.float().contiguous()
        used += [weight, *lists, scale]  # until the launch
        moved = out.dtype == weight.dtype and scale is None
        codes = (
            (weight.element_size(), 0, 0) if moved else (0, DTYPES[weight.dtype], DTYPES[out.dtype])
        )
        addresses = [0 if t is None else t.data_ptr() for t in (weight, *lists, scale, out)]
        height, width = out.shape if out.dim() == 2 else (1, out.shape[0])
        table.append([*addresses, weight.stride(0), height, width, *codes])
    if table:
        native("compact", weights[0].device, torch.tensor(table, dtype=torch.int64), len(table))
    return results


def _shape(weight, rows, columns):
    kept = (rows, columns)[: weight.dim()]
    return [n if k is None else k.shape[0] for n, k in zip(weight.shape, kept, strict=True)]


def _fake(weights, rows, columns, scales, dtype, check=True):
    jobs = zip(weights, rows, columns, strict=True)
    return [w.new_empty(_shape(w, r, c), dtype=dtype or w.dtype) for w, r, c in jobs]


def _check(weights, rows, columns, scales, dtype, check=True):
    for name, each in (("rows", rows), ("columns", columns), ("scales", scales)):
        if len(each) != len(weights):
            raise ValueError(f"compact: {len(each)} {name} for {len(weights)} weights.")
    if dtype not in (None, *DTYPES):
        raise TypeError(
            f"compact: dtype is {dtype}; it must be float32, bfloat16, float16 or None."
        )
    device = weights[0].device
    for i, (weight, *kept, scale) in enumerate(zip(weights, rows, columns, scales, strict=True)):
        names = [_name(n, i, weights) for n in ("weight", "rows", "columns", "scale")]
        moved = scale is None and dtype in (None, weight.dtype)
        check_tensor(
            "compact", names[0], weight, (weight.dtype,) if moved else FLOATS, None, device
        )
        if weight.dim() not in (1, 2):
            raise ValueError(
                f"compact: {names[0]} has {weight.dim()} dimensions; it must have 1 or 2."
            )
        if weight.element_size() not in WORDS:
            raise TypeError(
                f"compact: {names[0]} is {weight.dtype}, of {weight.element_size()} bytes."
            )
        if weight.shape[-1] > COLUMNS:
            raise ValueError(f"compact: {names[0]} has {weight.shape[-1]} columns, more than 2^32.")
        if weight.dim() == 1 and (kept[1] is not None or scale is not None):
            raise ValueError(
                f"compact: {names[0]} is a vector: it has no columns to keep or scale."
            )
        for name, index in zip(names[1:3], kept, strict=True):
            if index is not None:
                check_tensor("compact", name, index, INDICES, (None,), device)
        if scale is not None:
            width = _shape(weight, *kept)[1]
            check_tensor("compact", names[3], scale, FLOATS, (width,), device)


def check_kept(weights: Tensors, rows: Choices, columns: Choices) -> None:
    """ValueError unless all lists ascend inside their weights, wherever the lists are.

    On CUDA that waits for the device, once for all of them; on the host for nothing.
    """
    lists = {}  # the same list often serves several weights
    for i, (weight, *kept) in enumerate(zip(weights, rows, columns, strict=True)):
        for name, index, size in zip(("rows", "columns"), kept, weight.shape, strict=False):
            if index is not None and index.numel():
                lists.setdefault((id(index), size), (_name(name, i, weights), index, size))
    right = [
        (index[0] >= 0) & (index[-1] < size) & (index[1:] > index[:-1]).all()
        for _, index, size in lists.values()
    ]
    if not right or torch.stack(right).all():
        return
    for name, index, size in lists.values():
        before = -1
        for position, value in enumerate(index.tolist()):
            where = f"compact: {name} holds {value} at position {position}"
            if not 0 <= value < size:
                raise ValueError(f"{where}; it must lie between 0 and {size - 1}.")
            if value <= before:
                raise ValueError(f"{where}, after {before}; it must be strictly ascending.")
            before = value


def _name(name, i, weights):
    return name if len(weights) == 1 else f"{name}[{i}]"


OP = Op(
    "compact(Tensor[] weights, Tensor?[] rows, Tensor?[] columns, Tensor?[] scales, "
    "ScalarType? dtype, bool check=True) -> Tensor[]",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
)
