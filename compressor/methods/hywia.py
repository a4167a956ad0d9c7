"""HyWIA (arXiv 2403.10799): hybrid-grained weight importance, coarse and fine fused by attention.

Of unit u and calibration sequence n, with p = weight x gradient (`gradient_statistics`):

    coarse c_nu   `gate`    |sum p| over the unit's part of the output projection: to first order, what
                            the loss moves by when the unit is switched off
                  `vector`  sum over the unit's channels of |sum p|, over all its tensors
    fine   f_nu   `first`   sum |p| over the unit's weights; `second`  sum p^2

Both are divided by their mean over all units of the model, one constant each for the FFN channels
and one for the KV groups: what the gradient knows between blocks is kept. Then

    attention   two tokens a unit, coarse and fine. A granularity tells units apart as far as they
                differ in it, so the keys are the logarithms of its relative variance over the units
                of the group in the block; alpha = softmax(keys / tau), score = sum alpha * token
    fixed:a     a * coarse + (1 - a) * fine

where a token is the root mean square over the sequences.

Provenance. The paper's body could not be read: that a coarse and a fine Taylor importance are fused by
an attention mechanism is the paper's; this attention, which needs no training, is ours. The element-
and vector-wise formulas are LLM-Pruner's (arXiv 2305.11627). Absolute values are taken per sequence,
not of the batch's mean gradient as published, and the query heads of a KV group are its own.
"""

from collections.abc import Mapping

import torch

from compressor.methods.gradient_statistics import KINDS
from compressor.methods.statistics import Geometry

Evidence = Mapping[str, torch.Tensor]  # tensor name -> [sequences, kinds, units]

COARSE = {"gate": "signed", "vector": "vector"}
FINE = {"first": "absolute", "second": "square"}
TEMPERATURE = 1.0
TINY = torch.finfo(torch.float64).tiny


def tokens(
    evidence: Evidence, geometry: Geometry, coarse: str = "gate", fine: str = "first"
) -> dict[str, torch.Tensor]:
    """Of each group the two tokens of a block's units, coarse and fine: [2, units], float64.

    Root mean squares over the sequences (the square of `second` is what it sums already).
    """
    found = {}
    for group, slices in geometry.family.groups().items():
        names = [part.tensor for part in slices if part.tensor in evidence]
        output = [geometry.family.output(group)]
        c = _summed(evidence, COARSE[coarse], output if coarse == "gate" else names)
        f = _summed(evidence, FINE[fine], names)
        energies = c.square(), f.square() if fine == "first" else f
        found[group] = torch.stack([energy.mean(0).sqrt() for energy in energies])
    return found


def _summed(evidence: Evidence, kind: str, names: list[str]) -> torch.Tensor:
    return sum(evidence[name][:, KINDS.index(kind)].double() for name in names)


def fuse(
    blocks: list[dict[str, torch.Tensor]], mode: str = "attention"
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Scores and the coarse token's weight alpha, both [units] by group, of each block's `tokens`."""
    scores, alphas = [{} for _ in blocks], [{} for _ in blocks]
    for group in blocks[0]:
        means = torch.cat([block[group] for block in blocks], 1).mean(1, keepdim=True)
        for b, block in enumerate(blocks):
            values = block[group] / means.clamp_min(TINY)
            alpha = attend(values) if mode == "attention" else _fixed(mode, values)
            scores[b][group] = (alpha * values).sum(0)
            alphas[b][group] = alpha[0]
    return scores, alphas


def attend(values: torch.Tensor) -> torch.Tensor:
    """alpha [2, units] of tokens [2, units]: by how far the units of a block differ in each."""
    if values.shape[1] < 2:
        return torch.full_like(values, 0.5)
    spread = values.var(1, keepdim=True) / values.mean(1, keepdim=True).square().clamp_min(TINY)
    return torch.softmax(spread.clamp_min(TINY).log() / TEMPERATURE, 0).expand_as(values)


def _fixed(mode: str, values: torch.Tensor) -> torch.Tensor:
    share = float(mode.removeprefix("fixed:"))
    return torch.tensor([[share], [1 - share]], dtype=values.dtype).expand_as(values)
