"""BESA's mask as published: the eager construction that `kernels/besa_mask.py` is measured against.

Written from the equations of arXiv 2402.16880 (3 to 5, with the top-K cut of its released program) and
from how that program is reported to build them: int64 sort indices, a float32 mask of ones with zeros
scattered to the pruned places, the matrix of pruning probabilities by a matrix product and a scatter,
and a straight-through sum of both. For row-wise cuts the program has a CUDA op that writes the
zeros, one thread block a weight; here one scatter does it.
"""

import torch


def sorted_index(weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Columns of each row by ascending importance |W| * scale: int64 [rows, columns]."""
    importance = weight.float().abs()
    importance = importance if scale is None else importance * scale
    return importance.sort(dim=1, stable=True).indices


def published_mask(
    weight: torch.Tensor, order: torch.Tensor, beta: torch.Tensor, cut: torch.Tensor | None = None
) -> torch.Tensor:
    """weight [rows, columns], order as above, beta [groups, D + 1] -> masked weight.

    cut [groups]: how many weights of a row go, by default floor(columns * alpha). Differentiable in
    beta through the probabilities and in weight through the mask.
    """
    rows, columns = weight.shape
    groups, candidates = beta.shape
    steps = torch.arange(candidates, device=weight.device)
    places = torch.arange(columns, device=weight.device)
    if cut is None:
        alpha = beta.detach() @ (steps / (candidates - 1)).to(beta.dtype)
        cut = (alpha * columns).to(torch.int64)
    mask = torch.ones(weight.shape, dtype=beta.dtype, device=weight.device)
    if groups == 1:
        mask.scatter_(1, order[:, : int(cut)], 0.0)
    else:
        kept = places >= cut.repeat_interleave(rows // groups)[:, None]
        mask.scatter_(1, order, kept.to(beta.dtype))
    edges = steps * columns // (candidates - 1)
    pruned = beta @ (places < edges[:, None]).to(beta.dtype)  # by rank, [groups, columns]
    by_rank = (1 - pruned).repeat_interleave(rows // groups, 0)
    keep = torch.zeros_like(mask).scatter(1, order, by_rank)
    return weight * (mask - keep.detach() + keep).to(weight.dtype)
