"""Greedy elimination: which units a projection can do without, when the others take over for them.

Of a projection W [outputs, channels] that is fed A [tokens, channels], let G = A^T A / tokens and
H = (G + lambda diag G)^-1, in which the units that channels are measured in do not matter. Taking the
channels u away and refitting the others costs, in squared error,

    c_u = tr(W_u (H_uu)^-1 W_u^T),   and leaves   W -= W_u (H_uu)^-1 H_u:,   H -= H_:u (H_uu)^-1 H_u:

(Optimal Brain Surgeon; Hassibi and Stork, 1992; for structures ZipLM, arXiv 2302.04089). Without the
refit it would cost e_u = tr(W_u G_uu W_u^T); c_u / e_u is the share of the unit's part that the others
cannot make up for, more than one once it stands in for others itself.

Ours: a method's score counts in place of e_u, so the unit with the smallest score x share goes; and the
order of all units is computed at once, so that it holds for any number of units kept. Channels are taken
one by one without touching the matrices: H and K = W^T W, whose diagonals are all that c needs, are
brought up to date after every `MOST` of them, by matrix products of what remains
(`kernels/eliminate.py`). All of it is enqueued: a device is waited for once, for the order.
"""

import math

import torch

from compressor.errors import InputError
from compressor.kernels.eliminate import MOST, cheapest
from compressor.kernels.eliminate import eliminate as steps
from compressor.solvers.fixed_order import factored, inverse_of, one_thread

DAMPING = 0.1  # lambda
LEAST = 1e-12  # of the mean diagonal: what a channel that is always zero is damped by


def eliminate(
    gram: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    damping: float = DAMPING,
) -> torch.Tensor:
    """The cost of every unit when it was taken away: [units], rising in the order of elimination.

    gram [channels, channels]: the mean of a_t a_t^T; weight [outputs, channels], of the same dtype;
    scores [units], quadratic in what a unit contributes; channels / units are a unit's, side by side.
    Costs are scores x shares; where the next one would be less than the one before, it is the next
    larger number. In memory are three matrices as large as gram, and it beside them where the caller
    keeps it. `InputError` where the Gram matrix is too ill-conditioned for the damping.
    """
    channels, units = len(gram), len(scores)
    costs = gram.new_full((units,), math.inf)
    alone = own_errors(gram, weight, units)
    # A unit that contributes nothing is free to go, whatever its score says.
    prior = torch.where(alone > 0, scores.to(alone) / alone, 0)
    # In a list, and taken out: a name here would keep the matrix while there are newer ones.
    handed_over = [damped_inverse(gram, damping)]
    del gram
    in_order = channels_in_order if channels == units else groups_in_order
    order, ordered_costs = in_order(handed_over.pop(), weight, prior)
    costs[order] = ordered_costs
    return rising(costs, order)


def damped_inverse(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """H = (G + lambda diag G)^-1."""
    diagonal = gram.diagonal()
    level = diagonal.mean() if diagonal.mean() > 0 else diagonal.new_ones(())
    damped = gram.clone()
    damped.diagonal().add_(damping * diagonal.clamp_min(LEAST * level))
    factor = factored(damped)
    del damped
    if factor is None:
        raise InputError(
            f"The Gram matrix of {len(gram)} inputs is not positive definite with a damping of "
            f"{damping:g}; give more --samples, or try --dtype float32."
        )
    return inverse_of(factor).mT.contiguous()  # symmetric, and made column by column


def own_errors(gram: torch.Tensor, weight: torch.Tensor, units: int) -> torch.Tensor:
    """e of every unit: [units]."""
    columns = weight.unflatten(1, (units, -1)).transpose(0, 1)  # [units, outputs, width]
    if columns.shape[2] == 1:
        return gram.diagonal() * weight.square().sum(0)
    width = columns.shape[2]
    blocks = torch.stack([gram[u : u + width, u : u + width] for u in range(0, len(gram), width)])
    return ((columns @ blocks) * columns).sum((1, 2))


def groups_in_order(inverse: torch.Tensor, weight: torch.Tensor, prior: torch.Tensor):
    """Units in the order of elimination [units], and prior x c of each when it went; H is used up."""
    units, channels = len(prior), len(inverse)
    width, weight = channels // units, weight.clone()
    left = torch.ones(units, dtype=torch.bool, device=prior.device)
    numbers = torch.arange(units, device=prior.device)
    order, costs = [], []
    for _ in range(units):
        blocks = inverse.view(units, width, units, width)[numbers, :, numbers]
        # What is gone has left zeros behind; ones on its diagonal, and it can be solved with the others.
        blocks = torch.where(left[:, None, None], blocks, torch.eye(width).to(blocks))
        columns = weight.view(len(weight), units, width).permute(1, 2, 0)  # [units, width, outputs]
        with one_thread(blocks):
            solved, _ = torch.linalg.solve_ex(blocks, columns)
        cost = prior * (columns * solved).sum((1, 2))
        gone = cheapest(cost, left)
        own = (gone * width)[:, None] + torch.arange(width, device=gone.device)
        rows = inverse[own[0]]
        weight -= solved[gone][0].T @ rows
        with one_thread(rows):
            shares, _ = torch.linalg.solve_ex(rows[:, own[0]], rows)
        inverse -= rows.T @ shares
        for matrix in (inverse, inverse.T, weight.T):
            matrix.index_fill_(0, own[0], 0)
        left = left & (numbers != gone)
        order.append(gone)
        costs.append(cost[gone])
    return torch.cat(order), torch.cat(costs)


def channels_in_order(inverse: torch.Tensor, weight: torch.Tensor, prior: torch.Tensor):
    """The same for single channels: with K = W^T W and H brought up to date three matrices."""
    products = weight.T @ weight
    names = torch.arange(len(prior), device=prior.device)
    order, costs = [], []
    while len(names):
        gone, cost, v, u = steps(inverse, products, prior, min(MOST, len(names)))
        order.append(names[gone])
        costs.append(cost)
        # Those left, in order: what is gone sorts behind them. A mask would have to be counted first.
        places = torch.arange(len(names), device=names.device).index_fill_(0, gone, len(names))
        live = places.sort().values[: len(names) - len(gone)]
        names, prior, v, u = names[live], prior[live], v[:, live], u[:, live]
        # One after the other, so that the former matrix is gone before there are two new ones.
        inverse = inverse[live]
        inverse = inverse[:, live].addmm_(v.T, v, alpha=-1)
        products = products[live]
        products = products[:, live].addmm_(u.T, v, alpha=-1).addmm_(v.T, u, alpha=-1)
    return torch.cat(order), torch.cat(costs)


def rising(costs: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Costs as float32 on the CPU, each strictly above those that went before: at least the next number.

    The bits of a float count up with it, so "the next number" is one more, and all are found at once:
    y_i = max(x_i, y_(i-1) + 1) is i + the largest x_j - j so far.
    """
    result = costs.float() + 0.0  # which makes zeros of either sign the same
    in_order = result[order]
    numbers, place = ordered(in_order), torch.arange(len(order), device=order.device)
    numbers = (numbers - place).cummax(0).values + place
    infinity = ordered(result.new_full((1,), math.inf))
    above = ordered(numbers.minimum(infinity), back=True)
    result[order] = torch.where(in_order.isnan(), in_order, above)
    return result.cpu()


def ordered(x: torch.Tensor, back: bool = False) -> torch.Tensor:
    """float32 numbers as int64 in the same order, without gaps; or back."""
    bits = x.to(torch.int32) if back else x.view(torch.int32)
    turned = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # below zero a larger magnitude is less
    return turned.view(torch.float32) if back else turned.long()
