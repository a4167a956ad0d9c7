"""HyWIA (arXiv 2403.10799): hybrid-grained weight importance, coarse and fine fused by attention.

Of unit u and calibration sequence n, with p = weight x gradient (`gradient_statistics`) and the
coupled modules m of the unit reduced to one number (`reduce`: sum, mean, max, prod or last):

    coarse c_nu   `gate`    |sum p| over the unit's part of the output projection: to first order, what
                            the loss moves by when the unit is switched off
                  `vector`  reduce_m sum over the unit's channels of |sum p|
    fine   f_nu   `first`   reduce_m sum |p| over the unit's weights
                  `second`  reduce_m sum p^2, whose mean is sum w^2 F with the Fisher diagonal F
                  `mix`     reduce_m sum |w G - w^2 F / 2| with the mean gradient G

A token is the root mean square over the sequences. Tokens are divided by their mean over all units of
the model, one constant each for the FFN channels and one for the KV groups: what the gradient knows
between blocks is kept. Then

    attention   the tokens of a unit are keys and values; the query is what the same backward says of
                the unit to second order, without a weight gradient: the root of its K-FAC output error
                if it is an FFN channel, of its mask's Fisher information if it is a KV group
                (`kfac.py`), normalised like a token. A granularity is attended to as far as it agrees
                with the query, and the attended value is added to it, as in a residual connection:
                alpha = softmax(-(log key - log q)^2 / tau), score = q + sum alpha * token
    fixed:a     a * coarse + (1 - a) * fine
    calibrated  alpha of each group fitted to the measured loss changes of single masked units

Provenance. The paper's body could not be read: that a coarse and a fine Taylor importance are fused by
an attention mechanism is the paper's; this attention, which needs no training, is ours. The element-
and vector-wise formulas are LLM-Pruner's (arXiv 2305.11627), which takes them of the mean gradient
(methods `taylor`, `taylor-vector`, `taylor-mix`). Everywhere the query heads of a KV group are its
own (the published code folds others into it).
"""

from collections.abc import Mapping

import torch

from compressor.model.units import BlockGeometry
from compressor.scoring.methods import Combined
from compressor.scoring.methods.gradient_statistics import KINDS, GradientStatistics, names_of
from compressor.scoring.methods.grains import COARSE, FINE, REDUCTIONS, Grains
from compressor.scoring.methods.kfac import Kfac, MaskFisher
from compressor.scoring.scores import Blocks

Evidence = Mapping[str, Mapping[str, torch.Tensor]]  # source -> module -> [n, kinds, units]

PARTS = ("coarse", "fine")
USUAL = Grains()
TEMPERATURE = 0.01  # of squared differences of logarithms: tokens 10 % apart are told apart
TINY = torch.finfo(torch.float64).tiny


class GrainTokens(GradientStatistics):
    """Observes one block's backward; `reduced` gives the two tokens of its units by group."""

    def __init__(self, layer, geometry: BlockGeometry, block: int, grains: Grains):
        super().__init__(layer, geometry, block, grains.sources())
        self.grains = grains

    def reduced(self) -> dict[str, torch.Tensor]:
        return tokens(self.evidence(), self.geometry, self.grains)


class HybridGrains:
    """Observes the same and the query: `reduced` is [3, units], coarse, fine, query."""

    def __init__(self, layer, geometry: BlockGeometry, block: int, grains: Grains):
        self.observers = (
            GrainTokens(layer, geometry, block, grains),
            Kfac(layer, geometry, block, groups=["ffn"]),
            MaskFisher(layer, geometry, block, groups=["attention"]),
        )  # which see nothing of a group that the block has no units of

    def __enter__(self) -> "HybridGrains":
        for observer in self.observers:
            observer.__enter__()
        return self

    def __exit__(self, *error) -> None:
        for observer in self.observers:
            observer.__exit__(*error)

    def end_sequence(self, predicted: int) -> None:
        for observer in self.observers:
            observer.end_sequence(predicted)

    def reduced(self) -> dict[str, torch.Tensor]:
        grains, *queries = self.observers
        by_group = grains.reduced()
        for query in queries:
            for group, error in query.reduced().items():
                by_group[group] = torch.cat((by_group[group], error.sqrt()[None]))
        return by_group


def tokens(
    evidence: Evidence, geometry: BlockGeometry, grains: Grains = USUAL
) -> dict[str, torch.Tensor]:
    """Of each group the two tokens of a block's units, coarse and fine: [2, units], float64.

    Root mean squares over the sequences (the square of `second` is what it sums already).
    """
    by_group = {}
    for group, slices in geometry.family.groups().items():
        modules = dict.fromkeys(name for s in slices for name in names_of(s))
        of_coarse = [geometry.output_module(group)] if grains.coarse == "gate" else modules
        sequences = evidence[grains.gradient]
        c = _reduced(sequences, COARSE[grains.coarse], of_coarse, grains)
        source = evidence["mix"] if grains.fine == "mix" else sequences
        f = _reduced(source, FINE[grains.fine], modules, grains)
        energies = c.square(), f if grains.fine == "second" else f.square()
        by_group[group] = torch.stack([energy.mean(0).sqrt() for energy in energies])
    return by_group


def _reduced(evidence, kind: str, modules, grains: Grains) -> torch.Tensor:
    """[n, units] of the coupled modules, the output projection being the last."""
    of_modules = [evidence[m][:, KINDS.index(kind)].double() for m in modules if m in evidence]
    return REDUCTIONS[grains.reduce](torch.stack(of_modules))


def fuse(blocks: Blocks, mode: str = "attention", shares: Mapping[str, float] = {}) -> Combined:
    """Fuse what was `reduced` of all blocks. The parts are the tokens, and the rate of the coarse one is
    alpha. shares[group]: the coarse share that was fitted, if any.
    """
    blocks = normalised(blocks)
    scores: Blocks = [{} for _ in blocks]
    alphas: Blocks = [{} for _ in blocks]
    for b, block in enumerate(blocks):
        for group, rows in block.items():
            values = rows[: len(PARTS)]
            if mode == "attention":
                alpha = attend(values, rows[-1])
            else:
                share = shares[group] if group in shares else coarse_share(mode)
                alpha = torch.tensor([[share], [1 - share]], dtype=values.dtype).expand_as(values)
            residual = rows[-1] if mode == "attention" else 0
            scores[b][group] = (alpha * values).sum(0) + residual
            alphas[b][group] = alpha[0]
    parts = {
        part: [{group: rows[i] for group, rows in block.items()} for block in blocks]
        for i, part in enumerate(PARTS)
    }
    return Combined(scores, mode, parts, {"coarse": alphas})


def normalised(blocks: Blocks) -> Blocks:
    """Every row over its mean over all units of the group in the model."""
    means = {
        group: torch.cat([block[group] for block in blocks if group in block], 1).mean(
            1, keepdim=True
        )
        for group in {group for block in blocks for group in block}
    }
    return [{g: rows / means[g].clamp_min(TINY) for g, rows in block.items()} for block in blocks]


def attend(keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """alpha [2, units]: how much a unit's query [units] agrees with each of its keys [2, units]."""
    distance = keys.clamp_min(TINY).log() - query.clamp_min(TINY).log()
    return torch.softmax(-distance.square() / TEMPERATURE, 0)


def coarse_share(mode: str) -> float:
    """The weight of the coarse token in a mode that fixes it: `fixed:a`, `coarse` or `fine`."""
    alone = {"coarse": 1.0, "fine": 0.0}
    return alone[mode] if mode in alone else float(mode.removeprefix("fixed:"))


def fitted_share(parts: torch.Tensor, changes: torch.Tensor) -> float:
    """The coarse share a / (a + b) of the non-negative least squares fit a c + b f to loss changes.

    parts [2, probes]: coarse c and fine f of the masked units; changes [probes], in nats. With two
    columns the solution is the free fit, or one column alone where that has a negative weight.
    """
    gram, cross = parts @ parts.T, parts @ changes
    free = torch.linalg.lstsq(gram, cross[:, None]).solution[:, 0]
    if (free >= 0).all() and free.sum() > 0:
        return (free[0] / free.sum()).item()
    gains = cross.clamp_min(0).square() / gram.diagonal().clamp_min(TINY)
    return 0.5 if not gains.any() else float(gains[0] > gains[1])
