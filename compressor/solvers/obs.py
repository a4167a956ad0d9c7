"""SparseGPT (arXiv 2301.00774): pruning a linear layer and correcting what remains, column by column.

For weights W [out, in] and inputs X the error ||X W^T - X W'^T||^2 has the Hessian H = X^T X for
every row. With H^-1 = U^T U, U upper triangular, the columns are passed from left to right; a pruned
weight w_c is made up for by the columns to its right:

    W'[:, c:] -= (w_c / U_cc) U[c, c:]      where w_c goes, at the cost  (w_c / U_cc)^2

Which weights go is decided for `COLUMNS` columns at a time from their cost, after the corrections so
far: as published the cheapest share of each such piece of the matrix (`cheapest_of_piece`); or, for
sparsities that were learned, as many of each row as it still has to lose (`cheapest_of_rows`, ours).
"""

from collections.abc import Callable

import torch

from compressor.errors import InputError
from compressor.kernels.rank import rank
from compressor.solvers.fixed_order import factored, inverse_of

COLUMNS = 128
DAMPING = 0.01  # of the mean diagonal, as published
DEAD = 1e-9  # of the mean diagonal, for a channel that is always zero

Choice = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def inverse_factor(gram: torch.Tensor, name: str) -> torch.Tensor:
    """U float32 [in, in] of H^-1 = U^T U for H = gram + `DAMPING` * mean(diag(gram)).

    An input channel that is always zero has next to nothing on the diagonal, so that its weights cost
    next to nothing (the authors' program zeroes all of them besides the share that goes). InputError,
    by name, where H is not positive definite.
    """
    hessian = gram.float().clone()
    diagonal = hessian.diagonal()
    dead, mean = diagonal == 0, diagonal.mean()
    diagonal.add_(DAMPING * mean).masked_fill_(dead, DEAD * mean)
    lower = factored(hessian) if hessian.isfinite().all() else None
    # The upper factor is the other one's transpose.
    other = None if lower is None else factored(inverse_of(lower))
    if other is None:
        raise InputError(
            f"The inputs of {name} have no positive definite second moments, so it cannot be "
            "corrected; use more calibration text, or --dtype float32."
        )
    return other.mT.contiguous()


def correct(weight: torch.Tensor, factor: torch.Tensor, choose: Choice) -> torch.Tensor:
    """The pruned and corrected weight, float32 [out, in]; what goes is exactly 0.

    factor: U above. choose(rest, diagonal, count) -> bool [out, count], true where one of the next
    `count` columns goes; rest [out, remaining columns] is the corrected weight from there on and
    diagonal [remaining columns] its part of diag(U).
    """
    result = weight.float().clone()
    columns = result.shape[1]
    for begin in range(0, columns, COLUMNS):
        end = min(begin + COLUMNS, columns)
        pruned = choose(result[:, begin:], factor.diagonal()[begin:], end - begin)
        errors = torch.empty(len(result), end - begin, device=result.device)
        for c in range(begin, end):
            lost = torch.where(pruned[:, c - begin], result[:, c], 0)
            error = lost / factor[c, c]
            result[:, c:end] -= error[:, None] * factor[c, c:end]
            result[:, c].masked_fill_(pruned[:, c - begin], 0)
            errors[:, c - begin] = error
        result[:, end:] -= errors @ factor[begin:end, end:]
    return result


def cheapest_of_piece(sparsity: float) -> Choice:
    """As published: of the next columns of all rows together, the share with the lowest cost."""

    def choose(rest: torch.Tensor, diagonal: torch.Tensor, count: int) -> torch.Tensor:
        cost = (rest[:, :count] / diagonal[:count]).square()
        order = cost.flatten().sort(stable=True).indices
        pruned = torch.zeros(cost.numel(), dtype=torch.bool, device=cost.device)
        pruned[order[: int(sparsity * cost.numel())]] = True
        return pruned.view_as(cost)

    return choose


def cheapest_of_rows(cuts: torch.Tensor) -> Choice:
    """Of each row's remaining columns, the cuts [out] of lowest cost, less those already gone.

    A row loses exactly `cuts` weights, wherever in it they lie.
    """
    left = cuts.long().clone()

    def choose(rest: torch.Tensor, diagonal: torch.Tensor, count: int) -> torch.Tensor:
        ranks = rank(rest, 1 / diagonal)[:, :count].to(torch.int32)
        pruned = ranks < left[:, None]
        left.sub_(pruned.sum(1))
        return pruned

    return choose
