"""BESA's mask with the straight-through gradient to its distribution (arXiv 2402.16880, section 3.2).

    forward    out = W where rank >= cut[group of the row], else 0
    backward   d loss / d beta[g, d] = - sum of W * G over the rows of group g where rank < E_d

with G = d loss / d out, E_d = floor(columns * d / D) and d = 0 .. D. It is the gradient through
P = sum_{d: E_d > rank} beta_d, the probability of being pruned (equation 4), where the mask stands
for 1 - P. Both ways read or write 6 bytes an element in bfloat16; neither P nor a mask is ever in
memory. All matrices of a block go in one call. Softmax and sparsity penalty are torch's, on beta
[groups, D + 1].
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import cache
from itertools import chain

import torch

from compressor.kernels.besa_cut import MOST_CANDIDATES, besa_cut
from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.gradient import differentiable
from compressor.kernels.native import DTYPES, in_rows, native
from compressor.kernels.rank import MOST_COLUMNS

PART_ROWS = 8  # of a larger group, summed one after the other; the parts' sums are added afterwards
REF_ROWS = 512  # at a time: the reference needs int64 indices, 8 bytes an element


def besa_mask(
    weight: torch.Tensor,
    rank: torch.Tensor,
    beta: torch.Tensor | None,
    cut: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Prune weight [rows, columns] below each row's cut; rows share beta in groups.

    rank: uint16 [rows, columns], as `rank` gives it: every row a permutation.
    beta: [groups, D + 1], float32, rows of sum 1; row r belongs to group r // (rows / groups), so
        groups = rows is row-wise and groups = 1 one distribution for the matrix. None: no gradient.
    cut: int32 [groups], how many weights of each row go; by default the mean of beta. For a sampled
        mask pass `besa_cut(beta, columns, seed=..., offset=...)`: the gradient is the same.

    What is kept is a copy of its bits, what is pruned is 0.0. A cut below 0 keeps and one above
    `columns` prunes everything; on a CPU both are refused. The gradient to weight, where it is
    wanted, is G where the weight is kept. Sums are in float32 in a fixed order: results repeat bit
    for bit and do not depend on the number of threads.
    """
    check_tensor("besa_mask", "weight", weight, shape=(None, None))
    if cut is None:
        if beta is None:
            raise ValueError(
                "besa_mask: beta and cut are both None; the cut comes from one of them."
            )
        cut = besa_cut(beta, weight.shape[1], backend=backend)
    elif type(cut) is torch.Tensor and cut.is_cpu and not torch.compiler.is_compiling():
        _check_values(cut, weight.shape[1])
    return besa_mask_many([weight], [rank], beta, [cut], backend=backend)[0]


def besa_mask_many(
    weights: Iterable[torch.Tensor],
    ranks: Iterable[torch.Tensor],
    beta: torch.Tensor | None,
    cuts: Iterable[torch.Tensor],
    *,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """`besa_mask` of each weight with its own rank and cut, all on one device.

    beta: the rows of the first weight's groups, then those of the second's, and so on: [groups of
        all, D + 1]. Its gradient is made whole, without a copy.
    """
    return DIFFERENTIABLE(list(weights), list(ranks), beta, list(cuts), backend=backend)


def _ref(weights, ranks, beta, cuts):
    return [_ref_one(*job) for job in zip(weights, ranks, cuts, strict=True)]


def _ref_one(weight, rank, cut):
    cuts = cut.repeat_interleave(weight.shape[0] // max(len(cut), 1))
    return torch.where(rank.to(torch.int32) >= cuts[:, None], weight, 0).contiguous()


def _ext(weights, ranks, beta, cuts):
    results, table, used = [], [], []
    for weight, *integers in zip(weights, ranks, cuts, strict=True):
        weight, (rank, cut) = in_rows(weight), (t.contiguous() for t in integers)
        out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        results.append(out)
        if out.numel() == 0:
            continue
        used += [weight, rank, cut]  # until the launch
        addresses = [t.data_ptr() for t in (weight, rank, cut, out)]
        sizes = (*weight.shape, weight.stride(0), weight.shape[0] // cut.shape[0])
        table.append([*addresses, *sizes, DTYPES[weight.dtype]])
    _launch("besa_mask", weights[0].device, table)
    return results


def _launch(name, device, table, *sizes):
    if table:
        native(name, device, array("q", chain.from_iterable(table)), len(table), *sizes)


def _fake(weights, ranks, beta, cuts):
    return [weight.new_empty(weight.shape) for weight in weights]


def _check(weights, ranks, beta, cuts):
    name = "besa_mask"
    _check_lists(name, weights, ranks=ranks, cuts=cuts)
    device = weights[0].device
    for i, (weight, rank, cut) in enumerate(zip(weights, ranks, cuts, strict=True)):
        names = _names(i, len(weights), "weight", "rank", "cut")
        _check_matrix(name, names, weight, rank, device)
        check_tensor(name, names[2], cut, (torch.int32,), (None,), device)
        _check_groups(name, names[0], weight.shape, cut.shape[0])
    if beta is not None:
        floats = (torch.float32, torch.float64)
        groups = sum(cut.shape[0] for cut in cuts)
        check_tensor(name, "beta", beta, floats, (groups, None), device)
        _check_candidates(name, beta.shape[1])


def _backward_ref(grads, weights, ranks, groups, candidates):
    jobs = zip(grads, weights, ranks, groups, strict=True)
    return torch.cat([_backward_ref_one(*job, candidates) for job in jobs])


def _backward_ref_one(grad, weight, rank, groups, candidates):
    rows, columns = weight.shape
    exact = exact_dtype(weight)
    buckets = candidates - 1
    # One bucket more for what is no rank of a column: on a GPU a bad index would stop the device.
    sums = torch.zeros(rows, buckets + 1, dtype=exact, device=weight.device)
    ends = torch.arange(1, candidates, device=weight.device) * columns // buckets
    for begin in range(0, rows, REF_ROWS):
        part = slice(begin, begin + REF_ROWS)
        products = weight[part].to(exact) * grad[part].to(exact)
        bucket = torch.searchsorted(ends, rank[part].to(torch.int64), right=True)
        sums[part].scatter_add_(1, bucket, products)
    sums = sums[:, :buckets].reshape(groups, rows // max(groups, 1), buckets)
    prefix = sums.sum(1).cumsum(1)
    return torch.cat([torch.zeros_like(prefix[:, :1]), -prefix], 1)


def _backward_ext(grads, weights, ranks, groups, candidates):
    device = weights[0].device
    out = torch.empty(sum(groups), candidates, dtype=torch.float32, device=device)
    table, used = [], []
    jobs = zip(grads, weights, ranks, groups, out.split(groups), strict=True)
    for *matrices, rank, count, part in jobs:
        (grad, weight), rank = map(in_rows, matrices), rank.contiguous()
        if weight.numel() == 0:
            part.zero_()
            continue
        group_rows = weight.shape[0] // count
        parts = count * -(-group_rows // PART_ROWS)
        split = group_rows > PART_ROWS
        partial = torch.empty(parts, candidates, device=device) if split else None
        used += [grad, weight, rank, partial]  # until the launch
        addresses = [0 if t is None else t.data_ptr() for t in (grad, weight, rank, partial, part)]
        sizes = (*weight.shape, grad.stride(0), weight.stride(0), group_rows)
        table.append([*addresses, *sizes, DTYPES[weight.dtype]])
    _launch("besa_mask_backward", device, table, candidates - 1, PART_ROWS)
    return out


def _backward_fake(grads, weights, ranks, groups, candidates):
    return weights[0].new_empty(sum(groups), candidates, dtype=exact_dtype(*weights))


def _backward_check(grads, weights, ranks, groups, candidates):
    name = "besa_mask_backward"
    _check_lists(name, weights, grads=grads, ranks=ranks, groups=groups)
    device = weights[0].device
    for i, (weight, grad, rank, count) in enumerate(
        zip(weights, grads, ranks, groups, strict=True)
    ):
        names = _names(i, len(weights), "weight", "rank", "grad")
        _check_matrix(name, names, weight, rank, device)
        check_tensor(name, names[2], grad, (weight.dtype,), tuple(weight.shape), device)
        _check_groups(name, names[0], weight.shape, count)
    _check_candidates(name, candidates)


def _check_lists(op, weights, **others):
    if not weights:
        raise ValueError(f"{op}: there is no weight.")
    for name, each in others.items():
        if len(each) != len(weights):
            raise ValueError(f"{op}: {len(each)} {name} for {len(weights)} weights.")
    check_tensor(op, _names(0, len(weights), "weight")[0], weights[0])


@cache  # a training step checks all matrices of a block twice
def _names(i, count, *names):
    return names if count == 1 else [f"{name}[{i}]" for name in names]


def _check_matrix(op, names, weight, rank, device):
    check_tensor(op, names[0], weight, shape=(None, None), device=device)
    check_tensor(op, names[1], rank, (torch.uint16,), tuple(weight.shape), device)


def _check_groups(op, name, shape, groups):
    rows, columns = shape
    if columns > MOST_COLUMNS:
        raise ValueError(f"{op}: {name} has {columns} columns; at most {MOST_COLUMNS} have ranks.")
    if groups < 0 or (rows % groups if groups else rows):
        raise ValueError(f"{op}: {rows} rows cannot be {groups} groups of the same size.")


def _check_candidates(op, candidates):
    if not 2 <= candidates <= MOST_CANDIDATES:
        raise ValueError(f"{op}: {candidates} candidates; 2 to {MOST_CANDIDATES} are possible.")


def _check_values(cut, columns):
    if cut.numel() and not 0 <= int(cut.min()) <= int(cut.max()) <= columns:
        low, high = int(cut.min()), int(cut.max())
        raise ValueError(
            f"besa_mask: cut is {low} to {high}; it must be 0 to {columns}, the columns."
        )


OP = Op(
    "besa_mask(Tensor[] weights, Tensor[] ranks, Tensor? beta, Tensor[] cuts) -> Tensor[]",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
)
BACKWARD = Op(
    "besa_mask_backward(Tensor[] grads, Tensor[] weights, Tensor[] ranks, SymInt[] groups, "
    "SymInt candidates) -> Tensor",
    check=_backward_check,
    ref=_backward_ref,
    fake=_backward_fake,
    ext=_backward_ext,
    cpu="ext",
    cuda="ext",
)


def _save(ctx, inputs, output):
    weights, ranks, beta, cuts = inputs
    ctx.save_for_backward(*weights, *ranks, *cuts, beta)


def _gradient(ctx, grads, backend):
    *lists, beta = ctx.saved_tensors
    count = len(lists) // 3
    weights, ranks, cuts = (lists[i : i + count] for i in range(0, 3 * count, count))
    to_weights, to_beta, none = [None] * count, None, [None] * count
    if any(ctx.needs_input_grad[0]):
        to_weights = OP(grads, ranks, None, cuts, backend=backend)
    if ctx.needs_input_grad[2]:
        groups = [cut.shape[0] for cut in cuts]
        found = BACKWARD(grads, weights, ranks, groups, beta.shape[1], backend=backend)
        to_beta = found.to(beta.dtype)
    return to_weights, none, to_beta, none


DIFFERENTIABLE = differentiable(OP, _gradient, _save)
