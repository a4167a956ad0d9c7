"""Whole experts by what a router does with them, from one forward pass.

REAP (arXiv 2510.13999), the mean over the tokens X_e that the router sends to expert e:

    S_e = mean over x in X_e of  g_e(x) |f_e(x)|_2

g_e the weight by which the block multiplies what the expert gives, f_e its output before that. An expert
that no token reaches has the score 0. `frequency`, what the paper compares with, is the share of tokens
that are sent to e.

A KV group is scored beside by the size of what it adds to the stream, |X_u W_o,u^T|_F, exactly: by the
Gram matrix of its channels. (The attention of such models stays whole; `planning/lattice.py`.)
"""

import torch

from compressor.model.units import BlockGeometry


def reap(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """Scores of one block's experts and KV groups, float64."""
    count, outputs = statistics["routed"]
    experts = torch.where(count > 0, outputs / count.clamp_min(1e-30), 0.0)
    return {"attention": added_by_groups(weights, statistics, geometry), "ffn": experts}


def frequency(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """The same with the share of tokens that reach an expert."""
    shares = statistics["routed"][0]
    return {"attention": added_by_groups(weights, statistics, geometry), "ffn": shares}


def added_by_groups(weights, statistics, geometry: BlockGeometry) -> torch.Tensor:
    """The root mean square of what each KV group adds to the stream."""
    o = weights[geometry.family.output("attention")]
    columns = o.double().unflatten(1, (geometry.units["attention"], -1)).transpose(0, 1)
    gram = columns.transpose(1, 2) @ columns
    return geometry.times * (statistics["gram"] * gram).sum((1, 2)).clamp_min(0).sqrt()
