"""BESA's mask with the straight-through gradient to its distribution (arXiv 2402.16880, section 3.2).

    forward    out = W where rank >= cut[group of the row], else 0
    backward   d loss / d beta[g, d] = - sum of W * G over the rows of group g where rank < E_d

with G = d loss / d out, E_d = floor(columns * d / D) and d = 0 .. D. It is the gradient through
P = sum_{d: E_d > rank} beta_d, the probability of being pruned (equation 4), where the mask stands
for 1 - P. Both ways read or write 6 bytes an element in bfloat16; neither P nor a mask is ever in
memory. Softmax and sparsity penalty are torch's, on beta [groups, D + 1].
"""

import torch

from compressor.kernels.besa_cut import MOST_CANDIDATES, besa_cut
from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.gradient import differentiable
from compressor.kernels.native import in_rows, native
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
    return DIFFERENTIABLE(weight, rank, beta, cut, backend=backend)


def _ref(weight, rank, beta, cut):
    cuts = cut.repeat_interleave(weight.shape[0] // max(len(cut), 1))
    return torch.where(rank.to(torch.int32) >= cuts[:, None], weight, 0).contiguous()


def _ext(weight, rank, beta, cut):
    weight = in_rows(weight)
    out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    rank, cut = rank.contiguous(), cut.contiguous()
    rows, columns = weight.shape
    matrix = (weight, weight.dtype, rows, columns, weight.stride(0))
    native("besa_mask", weight.device, *matrix, rank, cut, rows // len(cut), out)
    return out


def _fake(weight, rank, beta, cut):
    return weight.new_empty(weight.shape)


def _check(weight, rank, beta, cut):
    check_tensor("besa_mask", "weight", weight, shape=(None, None))
    device = weight.device
    check_tensor("besa_mask", "rank", rank, (torch.uint16,), tuple(weight.shape), device)
    check_tensor("besa_mask", "cut", cut, (torch.int32,), (None,), device)
    groups = cut.shape[0]
    if beta is not None:
        floats = (torch.float32, torch.float64)
        check_tensor("besa_mask", "beta", beta, floats, (groups, None), device)
        _check_candidates("besa_mask", beta.shape[1])
    _check_groups("besa_mask", weight.shape, groups)


def _backward_ref(grad, weight, rank, groups, candidates):
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


def _backward_ext(grad, weight, rank, groups, candidates):
    weight, grad = in_rows(weight), in_rows(grad)
    rows, columns = weight.shape
    if weight.numel() == 0:
        return torch.zeros(groups, candidates, dtype=torch.float32, device=weight.device)
    out = torch.empty(groups, candidates, dtype=torch.float32, device=weight.device)
    group_rows = rows // groups
    parts = -(-group_rows // PART_ROWS)
    partial = torch.empty(groups * parts, candidates - 1, device=out.device) if parts > 1 else None
    matrix = (weight, weight.dtype, rows, columns, weight.stride(0))
    sizes = (group_rows, candidates - 1, PART_ROWS)
    inputs = (grad, grad.stride(0), *matrix, rank.contiguous())
    native("besa_mask_backward", weight.device, *inputs, *sizes, partial, out)
    return out


def _backward_fake(grad, weight, rank, groups, candidates):
    return weight.new_empty(groups, candidates, dtype=exact_dtype(weight))


def _backward_check(grad, weight, rank, groups, candidates):
    name = "besa_mask_backward"
    check_tensor(name, "weight", weight, shape=(None, None))
    shape, device = tuple(weight.shape), weight.device
    check_tensor(name, "grad", grad, (weight.dtype,), shape, device)
    check_tensor(name, "rank", rank, (torch.uint16,), shape, device)
    _check_candidates(name, candidates)
    _check_groups(name, shape, groups)


def _check_groups(op, shape, groups):
    rows, columns = shape
    if columns > MOST_COLUMNS:
        raise ValueError(f"{op}: weight has {columns} columns; at most {MOST_COLUMNS} have ranks.")
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
    "besa_mask(Tensor weight, Tensor rank, Tensor? beta, Tensor cut) -> Tensor",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
)
BACKWARD = Op(
    "besa_mask_backward(Tensor grad, Tensor weight, Tensor rank, SymInt groups, SymInt candidates)"
    " -> Tensor",
    check=_backward_check,
    ref=_backward_ref,
    fake=_backward_fake,
    ext=_backward_ext,
    cpu="ext",
    cuda="ext",
)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad, backend):
    weight, rank, beta, cut = ctx.saved_tensors
    to_weight = to_beta = None
    if ctx.needs_input_grad[0]:
        to_weight = OP(grad, rank, None, cut, backend=backend)
    if ctx.needs_input_grad[2]:
        to_beta = BACKWARD(grad, weight, rank, *beta.shape, backend=backend).to(beta.dtype)
    return to_weight, None, to_beta, None


DIFFERENTIABLE = differentiable(OP, _gradient, _save)
