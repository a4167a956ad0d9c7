"""Ridge regression of every channel by itself toward the factor 1: what a norm's weight can take.

With A [tokens, channels] what is scaled and T [tokens, channels] what it should become,

    d = 1 + sum (T - A) A / (sum A^2 + lambda mean over the channels of sum A^2),

lambda chosen on tokens held back, as in `ridge.py`. Sums are float64.
"""

import math
from collections.abc import Iterator, Sequence

import torch

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


def scale(
    pairs: Pairs, fitted: int, grid: Sequence[float]
) -> tuple[torch.Tensor | None, dict | None]:
    """Factors [channels], float64, None where 1 is no worse; and what `ridge.regress` records.

    pairs: of every batch the inputs and targets, those from number `fitted` on being held back.
    """
    fit, held = Sums(), Sums()
    for i, pair in enumerate(pairs):
        (fit if i < fitted else held).add(*pair)
    before, energy = held.error(torch.ones_like(fit.squares)), held.energy.sum().item()
    best, taken, least = None, None, before
    for relative in grid:
        damped = fit.squares + relative * fit.squares.mean()
        factors = 1 + ((fit.cross - fit.squares) / damped).nan_to_num(0.0, 0.0, 0.0)
        error = held.error(factors)
        if math.isfinite(error) and error < least:
            best, taken, least = factors, relative, error
    if not energy > 0:
        return None, None
    return best, {"lambda": taken, "before": before / energy, "after": least / energy}


class Sums:
    """Of every channel, over tokens: A^2, A T and T^2."""

    squares = cross = energy = torch.zeros(())

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        inputs, targets = inputs.double(), targets.double()
        self.squares = self.squares + inputs.square().sum(0)
        self.cross = self.cross + (inputs * targets).sum(0)
        self.energy = self.energy + targets.square().sum(0)

    def error(self, factors: torch.Tensor) -> float:
        """|d A - T|^2 over all channels."""
        each = factors.square() * self.squares - 2 * factors * self.cross + self.energy
        return each.sum().item()
