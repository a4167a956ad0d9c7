"""Weighted column sums of a matrix:  out[c] = sum_r scale[r] * |W[r, c]|^p,  p = 1 or 2.

The whole weight chain of LLM-BIP (arXiv 2412.06419) is three calls: a = colsum(down),
v = 1 + colsum(up, a), colsum(o, v). Magnitude and Wanda norms are it with scale = 1.
Reads every weight once (2 bytes in bfloat16) and writes one float a column.
"""

from __future__ import annotations

import torch

from compressor.kernels.checks import check_choice, check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.native import in_rows, native
from compressor.kernels.triton_support import Variant, jit, on, tl, triton

REF_ROWS = 512  # at a time, so that no float32 copy of the whole matrix is made
BLOCK_COLUMNS = 128  # 16-byte loads of bfloat16 by 16 threads a row
BLOCK_ROWS = 32
PROGRAMS = 1024  # about eight for each multiprocessor of the largest device


def colsum(
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    p: int = 1,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """weight [rows, columns], scale [rows] or None (ones) -> [columns].

    Any float dtype; sums and result in float32 (float64 if the weight is of that type). The result
    does not depend on the number of threads and repeats bit for bit.
    """
    return OP(weight, scale, p, backend=backend)


def _ref(weight, scale, p):
    exact = exact_dtype(weight)
    total = torch.zeros(weight.shape[1], dtype=exact, device=weight.device)
    for begin in range(0, weight.shape[0], REF_ROWS):
        part = slice(begin, begin + REF_ROWS)
        powers = weight[part].to(exact).abs() if p == 1 else weight[part].to(exact).square()
        total += powers.sum(0) if scale is None else scale[part].to(exact) @ powers
    return total


@jit
def _colsum_kernel(
    weight,  # [rows, columns]
    scale,  # [rows] float32, or anything if not SCALED
    out,  # [programs along the rows, columns] float32
    rows,
    columns,
    stride_row,
    stride_column,
    rows_per_program,
    SCALED: tl.constexpr,
    POWER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    first = tl.program_id(1).to(tl.int64) * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    offset = column.to(tl.int64)[None, :] * stride_column
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for top in range(first, last, BLOCK_ROWS):
        row = top + tl.arange(0, BLOCK_ROWS)
        inside = (row < last)[:, None] & (column < columns)[None, :]
        w = tl.load(weight + row[:, None] * stride_row + offset, mask=inside, other=0.0)
        w = tl.abs(w.to(tl.float32))
        if POWER == 2:
            w = w * w
        if SCALED:
            w = w * tl.load(scale + row, mask=row < last, other=0.0)[:, None]
        total += w
    where = tl.program_id(1).to(tl.int64) * columns + column
    tl.store(out + where, tl.sum(total, 0), mask=column < columns)


def _triton(weight, scale, p):
    rows, columns = weight.shape
    if weight.numel() == 0:
        return torch.zeros(columns, dtype=torch.float32, device=weight.device)
    across = triton.cdiv(columns, BLOCK_COLUMNS)
    down = min(triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(PROGRAMS, across))
    each = triton.cdiv(triton.cdiv(rows, down), BLOCK_ROWS) * BLOCK_ROWS
    part = torch.empty(triton.cdiv(rows, each), columns, dtype=torch.float32, device=weight.device)
    scale = weight if scale is None else scale.float().contiguous()
    with on(weight):
        _colsum_kernel[(across, len(part))](
            weight,
            scale,
            part,
            rows,
            columns,
            *weight.stride(),
            each,
            SCALED=scale is not weight,
            POWER=p,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_COLUMNS=BLOCK_COLUMNS,
        )
    return part.sum(0) if len(part) > 1 else part[0]


def _ext(weight, scale, p):
    weight = in_rows(weight)
    scale = None if scale is None else scale.float().contiguous()
    rows, columns = weight.shape
    out = torch.empty(columns, dtype=torch.float32, device=weight.device)
    stride = weight.stride(0)
    native("colsum", weight.device, weight, weight.dtype, rows, columns, stride, scale, p, out)
    return out


def _fake(weight, scale, p):
    return weight.new_empty(weight.shape[1], dtype=exact_dtype(weight))


def _check(weight, scale, p):
    check_tensor("colsum", "weight", weight, shape=(None, None))
    if scale is not None:
        rows = weight.shape[0]
        check_tensor("colsum", "scale", scale, shape=(rows,), device=weight.device)
    check_choice("colsum", "p", p, (1, 2))


OP = Op(
    "colsum(Tensor weight, Tensor? scale, int p) -> Tensor",
    check=_check,
    ref=_ref,
    fake=_fake,
    triton=_triton,
    ext=_ext,
    cpu="ext",
    cuda="triton",
)

VARIANTS = [
    Variant(
        _colsum_kernel,
        {
            "weight": f"*{dtype}:16",
            "scale": "*fp32:16",
            "out": "*fp32:16",
            "rows": "i32:16",
            "columns": "i32:16",
            "stride_row": "i32:16",
            "rows_per_program": "i32:16",
        },
        {
            "stride_column": 1,
            "SCALED": scaled,
            "POWER": power,
            "BLOCK_ROWS": BLOCK_ROWS,
            "BLOCK_COLUMNS": BLOCK_COLUMNS,
        },
        wide=("weight",),
    )
    for dtype, scaled, power in [("bf16", True, 1), ("bf16", False, 1), ("fp32", True, 2)]
]
