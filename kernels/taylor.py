"""First-order Taylor importance of a weight W from its gradient G, with p = W * G * grad_scale:

    signed = sum p    absolute = sum |p|    square = sum p^2    (and sum |W|, sum W^2)

over every output row, every input column, or both, or over groups of neighbouring ones: a head is
head_dim rows of q_proj or head_dim columns of o_proj. LLM-Pruner's (arXiv 2305.11627) vector-wise
importance is |signed| and its first-order element-wise one is absolute; the mean of square over
samples is the sum of w^2 times the diagonal of the empirical Fisher matrix.

Reads every weight and every gradient once (4 bytes an element in bfloat16) whatever is asked, and
writes a few floats a row or column. Products and sums are float32: most products are too small for
float16.
"""

from typing import NamedTuple

import torch

from compressor.kernels import taylor_triton
from compressor.kernels.checks import check_choice, check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.native import in_rows, native

STATISTICS = ("signed", "absolute", "square")
MAGNITUDES = ("l1", "l2_squared")
REF_ROWS = 512  # about so many at a time: no float32 copy of the whole matrix is made


class Taylor(NamedTuple):
    """Sums in float32 (float64 if the weight or the gradient is); None where not asked for.

    Statistics come in the order of STATISTICS, then, with magnitude=True, of MAGNITUDES.
    """

    rows: torch.Tensor | None  # [statistics, rows / row_group]
    columns: torch.Tensor | None  # [statistics, columns / column_group]
    nonfinite: torch.Tensor  # [] int64: elements whose product is infinite or NaN


def taylor(
    weight: torch.Tensor,
    grad: torch.Tensor,
    *,
    rows: bool = True,
    columns: bool = False,
    row_group: int = 1,
    column_group: int = 1,
    grad_scale: float = 1.0,
    magnitude: bool = False,
    out: Taylor | None = None,
    backend: str | None = None,
) -> Taylor:
    """weight, grad [rows, columns], float dtypes that may differ, any strides -> `Taylor`.

    row_group, column_group: so many neighbours are summed into one; they divide the sizes. Where
    channels and groups are both of interest, ask for channels and fold them with `grouped`.
    grad_scale: multiplies the gradient, to undo a loss scale or to take a mean.
    magnitude: the sums of |W| and W^2 too.
    out: an earlier result of the same arguments. It is added to, magnitudes included, and returned,
    so that the gradients of one sequence after another leave nothing behind but their sums.

    A product that is not finite makes its rows' and columns' sums so, and is counted. The result
    does not depend on the number of threads and repeats bit for bit.
    """
    _check_matrices(weight, grad, row_group, column_group)
    count = len(STATISTICS) + (len(MAGNITUDES) if magnitude else 0)
    if out is None:
        like = {"dtype": exact_dtype(weight, grad), "device": weight.device}
        height, width = weight.shape
        out = Taylor(
            torch.zeros(count, height // row_group, **like) if rows else None,
            torch.zeros(count, width // column_group, **like) if columns else None,
            torch.zeros((), dtype=torch.int64, device=weight.device),
        )
    elif (rows, columns) != (out.rows is not None, out.columns is not None):
        raise ValueError("taylor: rows and columns must be asked for as when out was made.")
    elif count != _count(out.rows, out.columns):
        made = _count(out.rows, out.columns)
        raise ValueError(
            f"taylor: out has {made} statistics, but magnitude={magnitude} gives {count}."
        )
    OP(weight.detach(), grad.detach(), *out, row_group, column_group, grad_scale, backend=backend)
    return out


def grouped(sums: torch.Tensor, group: int) -> torch.Tensor:
    """Fold the sums of channels [..., channels] into those of groups [..., channels / group]."""
    return sums.unflatten(-1, (-1, group)).sum(-1)


def _count(rows, columns):
    return len(columns if rows is None else rows)


def _ref(weight, grad, rows, columns, nonfinite, row_group, column_group, grad_scale):
    exact = exact_dtype(weight, grad)
    step = -(-REF_ROWS // row_group) * row_group
    for begin in range(0, weight.shape[0], step):
        w = weight[begin : begin + step].to(exact)
        p = w * (grad[begin : begin + step].to(exact) * grad_scale)
        nonfinite += (~p.isfinite()).sum()
        statistics = [p, p.abs(), p.square()]
        if _count(rows, columns) == 5:
            statistics += [w.abs(), w.square()]
        for k, statistic in enumerate(statistics):
            if rows is not None:
                part = grouped(statistic.sum(1), row_group)
                rows[k, begin // row_group :][: len(part)] += part
            if columns is not None:
                columns[k] += grouped(statistic.sum(0), column_group)


def _ext(weight, grad, rows, columns, nonfinite, row_group, column_group, grad_scale):
    if weight.stride(0) == 1 != weight.stride(1):
        # A transposed view: its columns are rows in memory.
        weight, grad = weight.T, grad.T
        rows, columns, row_group, column_group = columns, rows, column_group, row_group
    weight, grad = in_rows(weight), in_rows(grad)
    matrices = (weight, weight.dtype, weight.stride(0), grad, grad.dtype, grad.stride(0))
    sums = (_count(rows, columns), rows, row_group, columns, column_group, nonfinite)
    native("taylor", weight.device, *matrices, *weight.shape, grad_scale, *sums)


def _fake(weight, grad, rows, columns, nonfinite, row_group, column_group, grad_scale):
    return None


def _check_matrices(weight, grad, row_group, column_group):
    check_tensor("taylor", "weight", weight, shape=(None, None))
    check_tensor("taylor", "grad", grad, shape=tuple(weight.shape), device=weight.device)
    sides = zip(("row", "column"), weight.shape, (row_group, column_group), strict=True)
    for side, size, group in sides:
        if group < 1 or size % group:
            raise ValueError(f"taylor: {side}_group is {group}; it must divide the {size} {side}s.")


def _check(weight, grad, rows, columns, nonfinite, row_group, column_group, grad_scale):
    _check_matrices(weight, grad, row_group, column_group)
    if rows is None and columns is None:
        raise ValueError("taylor: neither rows nor columns were asked for.")
    count = _count(rows, columns)
    check_choice("taylor", "the number of statistics of out", count, (3, 5))
    height, width = weight.shape
    groups = {
        "out.rows": (rows, height // row_group),
        "out.columns": (columns, width // column_group),
    }
    for name, (sums, size) in groups.items():
        if sums is not None:
            exact = (exact_dtype(weight, grad),)
            check_tensor("taylor", name, sums, exact, (count, size), weight.device)
            if not sums.is_contiguous():
                raise ValueError(f"taylor: {name} must be contiguous.")
    check_tensor("taylor", "out.nonfinite", nonfinite, (torch.int64,), (), weight.device)


OP = Op(
    "taylor(Tensor weight, Tensor grad, Tensor(a!)? rows, Tensor(b!)? columns, Tensor(c!) nonfinite,"
    " int row_group, int column_group, float grad_scale) -> ()",
    check=_check,
    ref=_ref,
    fake=_fake,
    triton=taylor_triton.launch,
    ext=_ext,
    cpu="ext",
    cuda="triton",
)
