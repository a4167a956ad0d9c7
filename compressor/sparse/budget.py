"""How many weights of every row go, so that exactly the asked number of a block's weights does.

A block's rows r have columns C_r and a distribution beta_r over the candidate sparsities p_d = d/D;
their mean sparsities alpha_r = sum_d beta_rd p_d (arXiv 2402.16880, equation 3) are brought to the
target by one number for the whole block, the exponential tilt eta of all distributions:

    beta_r(eta) = softmax(theta_r + eta p),    eta such that  sum_r C_r alpha_r(eta) = target

It is used twice, and is ours: to begin at any target, and to end on it exactly.
"""

from fractions import Fraction

import torch

HALVINGS = 100  # of an interval of eta: float64 is exhausted before, but around 0


def budget(weights: int, sparsity: float) -> int:
    """floor(sparsity * weights), the sparsity being the decimal number that was written."""
    return int(Fraction(str(sparsity)) * weights)


def candidates(count: int, like: torch.Tensor) -> torch.Tensor:
    """p_d = d / D for d = 0 .. D = count - 1, in the dtype and on the device of `like`."""
    return torch.arange(count, dtype=like.dtype, device=like.device) / (count - 1)


def tilted(theta: torch.Tensor, columns: torch.Tensor, zeros: int) -> torch.Tensor:
    """theta + eta p [rows, D + 1], in float64, such that sum_r columns_r alpha_r = zeros.

    columns: weights that each row of theta stands for. 0 < zeros < sum of columns. alpha rises with
    eta from 0 to 1, so there is one solution, found by halving.
    """
    theta, columns = theta.double(), columns.double()
    p = candidates(theta.shape[1], theta)

    def excess(eta: float) -> float:
        return (columns @ ((theta + eta * p).softmax(1) @ p)).item() - zeros

    reach = 1.0
    while excess(-reach) > 0 or excess(reach) < 0:
        reach *= 2
    low, high = -reach, reach
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return theta + high * p


def exact_cuts(wanted: torch.Tensor, columns: torch.Tensor, zeros: int) -> torch.Tensor:
    """Whole numbers int32 [rows], near `wanted` and from 0 to columns, that add up to `zeros`.

    wanted, columns: float64 and int64 [rows], the weights of each row that should go and those it has,
    with sum(wanted) = zeros but for rounding. Each row gets the whole part; what is missing goes, one
    each, to the rows with the largest remainders, of equal ones the first.
    """
    cuts = wanted.floor().long().clamp(min=0).minimum(columns)
    order = (cuts - wanted).sort(stable=True).indices
    order = order[(cuts < columns)[order]]
    cuts[order[: zeros - int(cuts.sum())]] += 1
    return cuts.to(torch.int32)
