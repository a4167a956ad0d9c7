"""What every pruning paper compares with: random, magnitude, Wanda-sp."""

import torch

from compressor.kernels.colsum import colsum
from compressor.model.units import BlockGeometry


def random(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """Uniform numbers from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(n, generator=generator) for g, n in geometry.units.items()}


def magnitude(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """Sum over all weights of a unit of w^2 (`l2`) or |w| (`l1`), as LLM-Pruner's baseline."""
    p = {"l1": 1, "l2": 2}[mode]
    scores = {}
    for group, slices in geometry.family.groups().items():
        total = torch.zeros(geometry.units[group])
        for part in slices:
            if part.tensor in weights and weights[part.tensor].ndim > 1:
                weight = part.matrix(weights[part.tensor])
                sums = colsum(weight if part.axis == 1 else weight.T, p=p)
                for piece in part.pieces(sums, geometry.units[group], geometry.sizes):
                    total += piece.sum(1).cpu()
        scores[group] = total
    return scores


def wanda_sp(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """mean_i |W[i, c]| * ||x_c||_2 at the output projections; a KV group is the sum of its channels.

    ||x_c||^2 is taken per sequence, as the authors' code does (it only rescales the scores).
    """
    scores = {}
    per_sequence = statistics["tokens"] / statistics["sequences"]
    for group, units in geometry.units.items():
        if group == "ffn" and geometry.family.experts:
            scores[group] = within_experts(weights, statistics, geometry, per_sequence)
            continue
        weight = weights[geometry.family.output(group)]
        norm = (statistics[group][2] * per_sequence).sqrt()
        channel = colsum(weight).double() / weight.shape[0] * norm
        scores[group] = channel.view(units, -1).sum(1)
    return scores


def within_experts(weights, statistics, geometry: BlockGeometry, per_sequence: float):
    """The same of every expert's channels, of the tokens that reach it."""
    down = weights[geometry.family.experts.down]
    norm = (statistics["ffn"][2] * per_sequence).sqrt()
    return down.double().abs().mean(1).flatten() * norm
