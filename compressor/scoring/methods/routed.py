"""Whole experts by what a router does with them, from one forward pass.

REAP (arXiv 2510.13999), the mean over the tokens X_e that the router sends to expert e:

    S_e = mean over x in X_e of  g_e(x) |f_e(x)|_2

g_e the weight by which the block multiplies what the expert gives, f_e its output before that. An
expert that no token reaches has the score 0. `total` is the sum over them, of all tokens' number: what
e gives in all. `frequency`, what the paper compares with, is the share of tokens that are sent to e.
`loss` is ours: by how much the model's own loss rises when e alone is hidden from its router, which
then chooses among the others, in nats a token of some sequences of the calibration text.

A KV group is scored beside by the size of what it adds to the stream, |X_u W_o,u^T|_F, exactly: by the
Gram matrix of its channels. (The attention of such models stays whole; `planning/lattice.py`.)
"""

import torch

from compressor.model.passes import Passing
from compressor.model.units import BlockGeometry
from compressor.scoring.methods import Calibration, Combined
from compressor.scoring.probing import loss_changes_in_parts
from compressor.scoring.scores import Blocks
from compressor.text.tokens import TokenSet

PROBE_SEQUENCES = 8


def reap(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """Scores of one block's experts and KV groups, float64."""
    scores = added_by_groups(weights, statistics, geometry)
    if "ffn" in geometry.units:
        count, outputs = statistics["routed"]
        mean = torch.where(count > 0, outputs / count.clamp_min(1e-30), 0.0)
        scores["ffn"] = outputs if mode == "total" else mean
    return scores


def frequency(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """The same with the share of tokens that reach an expert."""
    scores = added_by_groups(weights, statistics, geometry)
    if "ffn" in geometry.units:
        scores["ffn"] = statistics["routed"][0]
    return scores


def added_by_groups(weights, statistics, geometry: BlockGeometry) -> dict:
    """The root mean square of what each KV group adds to the stream, where there are any."""
    if "attention" not in geometry.units:
        return {}
    o = weights[geometry.family.output("attention")]
    columns = o.double().unflatten(1, (geometry.units["attention"], -1)).transpose(0, 1)
    gram = columns.transpose(1, 2) @ columns
    sizes = geometry.times * (statistics["gram"] * gram).sum((1, 2)).clamp_min(0).sqrt()
    return {"attention": sizes}


def measured(blocks: Blocks, mode: str, calibration: Calibration) -> Combined:
    """The scores of all blocks with the losses without each expert in the place of what was found of it.

    In float32, as the changes are small. Where the loss falls without some expert of a block, those of
    the block count from the least.
    """
    stream, sequences = calibration.stream, calibration.tokens.sequences
    every = max(1, len(sequences) // PROBE_SEQUENCES)
    texts = TokenSet(sequences[::every][:PROBE_SEQUENCES])
    counts = [units["ffn"] for units in stream.checkpoint.block_units]
    probes = [(b, "ffn", expert) for b, count in enumerate(counts) for expert in range(count)]
    kept = Passing(saved=calibration.saved and calibration.saved / "probes")
    batches = texts.batches(stream.batch_tokens)
    changes = loss_changes_in_parts(stream.in_float32(), batches, probes, kept)
    scores = [
        block | ({"ffn": mine - mine.min().clamp_max(0)} if len(mine) else {})
        for block, mine in zip(blocks, changes.split(counts), strict=True)
    ]
    return Combined(scores, mode)
