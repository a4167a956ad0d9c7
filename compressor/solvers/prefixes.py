"""The error of every cut of a projection at once, from sums over tokens.

A projection W [outputs, channels] reads A [tokens, channels] and should give T [tokens, outputs]. Its
channels are in an order, and a cut keeps the first k of them: S. With G = A^T A and C = T^T A,

    |T - A_S W_S^T|^2 = |T|^2 - 2 sum_{i in S} W_i . C_i + sum_{i, j in S} (W^T W)_ij G_ij,

whose values for all k are prefix sums. The ridge refit of S toward W (`ridge.py`) is
W'_S = (C_S + l W_S) (G_SS + l I)^-1. With the Cholesky factor L of G + l I in that order, whose leading
part is the factor of G_SS + l I, the refitted outputs of every k are prefixes too:

    A_S W'_S^T = Q_S Z_S^T,    Q = A L^-T,    Z = (C + l W) L^-T

so one factorisation gives the errors of all k, on tokens other than those of the fit as well: theirs
are the sums above with Z for W and L^-1 G' L^-T, C' L^-T for G and C. Ours; that a Cholesky factor
holds all nested regressions is textbook knowledge.
"""

from collections.abc import Sequence

import torch

from compressor.solvers.fixed_order import factored, solved
from compressor.solvers.ridge import Moments


def prefix_errors(
    gram: torch.Tensor, cross: torch.Tensor, energy: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """|T - A_S W_S^T|^2 for S the first 0, 1, ... all channels: float64 [channels + 1].

    gram [channels, channels], cross and weight [outputs, channels]: channels in order; energy |T|^2.
    """
    pairs = torch.tril((weight.T @ weight) * gram, -1).sum(1)
    alone = (weight * (weight * gram.diagonal() - 2 * cross)).sum(0)
    steps = (2 * pairs + alone).double().cumsum(0)
    return torch.cat((steps.new_zeros(1), steps)) + energy.double()


def plain_errors(sums: Moments, weight: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`prefix_errors` of weight as it is; order: the channels, the one kept longest first."""
    gram, cross = in_order(sums, order)
    return prefix_errors(gram, cross, sums.energy, weight.double()[:, order])


def refit_errors(
    fit: Moments, held: Moments, weight: torch.Tensor, order: torch.Tensor, grid: Sequence[float]
) -> torch.Tensor:
    """Held-back errors of the best of the plain cut and its refits: float64 [channels + 1].

    fit, held: sums over the tokens of the fit and over those held back. grid: values of lambda,
    relative to the mean diagonal of the whole gram; one that leaves it indefinite is passed over.
    """
    gram, cross = in_order(fit, order)
    held_gram, held_cross = in_order(held, order)
    weight = weight.double()[:, order]
    best = prefix_errors(held_gram, held_cross, held.energy, weight)
    scale = gram.diagonal().mean()
    for damping in (value * scale for value in grid if scale > 0):
        damped = gram.clone()
        damped.diagonal().add_(damping)
        factor = factored(damped)
        if factor is None:
            continue

        def whitened(rows: torch.Tensor, factor=factor) -> torch.Tensor:
            return solved(factor, rows.T).T

        errors = prefix_errors(
            whitened(whitened(held_gram).T),
            whitened(held_cross),
            held.energy,
            whitened(cross + damping * weight),
        )
        best = torch.minimum(best, errors)
    return best


def in_order(sums: Moments, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gram and the cross sums with channels in order, float64."""
    return sums.gram.double()[order][:, order], sums.cross.double()[:, order]
