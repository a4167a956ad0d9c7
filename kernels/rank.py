"""Stable rank of the importance |W| * scale within each row, 0 = least important.

BESA (arXiv 2402.16880, equation 2) sorts every row of W [out, in] by |W[r, c]| * sqrt(a[c]), where
a[c] is the second moment of input channel c, once a block; every later step only compares ranks.
Reads 2 bytes an element in bfloat16 and writes 2 (a sorted index of torch takes 8).
"""

import torch

from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.native import in_rows, native

MOST_COLUMNS = 65_535  # so that a rank, and a number of columns, is a uint16
SCRATCH = 1 << 26  # keys at a time, for rows that are too wide for shared memory
REF_ROWS = 512  # at a time: torch sorts int64 indices, 8 bytes an element


def rank(
    weight: torch.Tensor, scale: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """weight [rows, columns <= 65,535], scale [columns] or None (ones) -> uint16 [rows, columns].

    scale is the norm sqrt(a), not a: it multiplies as it is. Each row of the result is a permutation:
    the inverse of `(weight.float() * scale).abs().sort(dim=1, stable=True).indices`. Ties (as -0.0
    and 0.0) go by column; infinities come late and NaN last. float64 is ranked in float64.
    """
    return OP(weight, scale, backend=backend)


def _ref(weight, scale):
    exact = exact_dtype(weight)
    out = torch.empty(weight.shape, dtype=torch.uint16, device=weight.device)
    places = torch.arange(weight.shape[1], device=weight.device)
    for begin in range(0, weight.shape[0], REF_ROWS):
        part = weight[begin : begin + REF_ROWS].to(exact)
        importance = (part if scale is None else part * scale.to(exact)).abs()
        order = importance.sort(dim=1, stable=True).indices
        ranks = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
        out[begin : begin + REF_ROWS] = ranks.to(torch.uint16)
    return out


def _ext(weight, scale):
    weight = in_rows(weight)
    scale = None if scale is None else scale.float().contiguous()
    rows, columns = weight.shape
    out = torch.empty(weight.shape, dtype=torch.uint16, device=weight.device)
    if weight.is_cpu:
        sizes = (weight.dtype, rows, columns, weight.stride(0))
        native("rank", weight.device, weight, *sizes, scale, out)
        return out
    parts = -(-columns // columns_in_shared(weight.device))
    step, scratch = max(1, rows), None
    if parts > 1:
        step = max(1, SCRATCH // columns)
        scratch = torch.empty(min(step, rows), columns, dtype=torch.int32, device=weight.device)
    for begin in range(0, rows, step):
        sizes = (weight.dtype, min(step, rows - begin), columns, weight.stride(0))
        native("rank", weight.device, weight[begin:], *sizes, scale, parts, out[begin:], scratch)
    return out


def columns_in_shared(device: torch.device) -> int:
    """How many columns of a row one CUDA block sorts: 7 bytes a column of its shared memory."""
    most = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return min(32_768, (most - 1024) // 7 // 512 * 512)


def _fake(weight, scale):
    return weight.new_empty(weight.shape, dtype=torch.uint16)


def _check(weight, scale):
    check_tensor("rank", "weight", weight, shape=(None, None))
    columns = weight.shape[1]
    if columns > MOST_COLUMNS:
        raise ValueError(
            f"rank: weight has {columns} columns; at most {MOST_COLUMNS} are possible."
        )
    if scale is not None:
        check_tensor("rank", "scale", scale, shape=(columns,), device=weight.device)


OP = Op(
    "rank(Tensor weight, Tensor? scale) -> Tensor",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
)
