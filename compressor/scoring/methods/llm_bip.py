"""LLM-BIP (arXiv 2412.06419): how much a unit moves its own block's output, from one forward pass.

FFN channel j, exactly:      s_j = ||X[:, j]||_p * ||W_down[:, j]||_p
Attention channel j, bound:  s_j = ||X[:, j]||_p * (sum_k v_k |W_o[k, j]|^p)^(1/p)
with v the amplification of a change of the residual stream by identity and FFN. The chain
a = colsum(down), v = 1 + colsum(up, a), colsum(o, v) needs no hidden x hidden product. Where the FFN
reads what the attention reads, v = 1: no change of the one reaches the other.

The FFN is W_down (phi(W_gate z) * W_up z) or, without a gate, W_down phi(W_up z), of the normed stream
z = w * x / rms(x), or with a LayerNorm w * (x - mean(x)) / std(x) + b. `bip` leaves out all but up and
down; the other modes have, with |w| mean(1/rms) or |w| mean(1/std) as the norm's gain,

    v_k = 1 + (|w_k| rate)^p (sum_j a_j m_j |W_up[j, k]|^p + sum_j a_j n_j |W_gate[j, k]|^p)

m = mean |phi|^p and n = mean |up phi'|^p (at p = 1 bounded by the largest slope); without a gate
m = mean |phi'|^p and no second sum.

Of a mixture of experts X[:, j] are the tokens that the router sends to the expert, times its weights.

Where a block adds a multiple of what they give (Granite), W_down and W_o are that multiple. Where a norm
follows the output projections (Gemma), all of this is of what that norm reads: its gain
and its rate, which a cut changes, are left out, and s_j is no longer the error of the block's output.

Provenance. The paper's body could not be read; the formulas of `bip` are as reported by a third
party and re-derived. The others are ours:
    bip         p = 1 as reported: activation constant, norm and gate left out
    bip-gated   p = 1 with the norm's gain and rate, and both branches of a gated FFN, or the slope of
                the activation of one without a gate
    bip-energy  p = 2: independent errors add in quadrature, so the residual path is not drowned
    bip-gram    bip-energy, exact within a KV group by the Gram matrix of its channels
"""

import torch

from compressor.kernels.activations import LIPSCHITZ
from compressor.kernels.colsum import colsum
from compressor.model.units import BlockGeometry


def score(weights, statistics, geometry: BlockGeometry, mode: str, seed: int) -> dict:
    """Scores of one block's KV groups and FFN channels, float64; p = 2 modes are roots of energies."""
    family, groups = geometry.family, geometry.units.get("attention")
    if family.experts:
        return of_experts(weights, statistics, geometry, mode)
    if "ffn" not in geometry.units:  # of a mixture, in a block with one FFN
        return of_groups_alone(weights, statistics, geometry, mode)
    down, o = weights[family.output("ffn")], weights[family.output("attention")]
    p = 1 if mode in ("bip", "bip-gated") else 2
    size = {1: 0, 2: 2}[p]  # the row of the moments: sum |x| or sum x^2
    times = geometry.times**p  # of what the block adds
    output = times * colsum(down, p=p).double()  # [channels], the p-th power of each column's norm
    ffn = (statistics["ffn"][size] * output) ** (1 / p)
    if groups is None:
        return {"ffn": ffn}
    through = amplification(weights, statistics, geometry, mode, output)
    if mode == "bip-gram":
        columns = o.float().unflatten(1, (groups, -1)).transpose(0, 1)  # [groups, hidden, channels]
        metric = (columns * through.float()[:, None]).transpose(1, 2) @ columns
        attention = (times * statistics["gram"] * metric).sum((1, 2)).clamp_min(0).sqrt()
    else:
        channel = times * statistics["attention"][size] * colsum(o, through.float(), p=p).double()
        attention = channel.view(groups, -1).sum(1) ** (1 / p)
    return {"attention": attention, "ffn": ffn}


def of_experts(weights, statistics, geometry: BlockGeometry, mode: str) -> dict:
    """The same of every channel of an expert: what the block adds of it, the router's weights in it."""
    p = 1 if mode in ("bip", "bip-gated") else 2
    size, times = {1: 0, 2: 2}[p], geometry.times**p
    down = weights[geometry.family.experts.down].double()  # [experts, hidden, channels]
    output = times * down.abs().pow(p).sum(1).flatten()
    ffn = (statistics["weighed"][size] * output) ** (1 / p)
    return of_groups_alone(weights, statistics, geometry, mode) | {"ffn": ffn}


def of_groups_alone(weights, statistics, geometry: BlockGeometry, mode: str) -> dict:
    """The KV groups of a mixture, which stay: scored as if nothing came after them."""
    if "attention" not in geometry.units:
        return {}
    p = 1 if mode in ("bip", "bip-gated") else 2
    size, times = {1: 0, 2: 2}[p], geometry.times**p
    o = weights[geometry.family.output("attention")]
    channel = times * statistics["attention"][size] * colsum(o, p=p).double()
    return {"attention": channel.view(geometry.units["attention"], -1).sum(1) ** (1 / p)}


def amplification(weights, statistics, geometry: BlockGeometry, mode: str, output) -> torch.Tensor:
    """v [hidden]: what a change of stream channel k before the FFN adds up to at the block's output.

    output [channels]: a (p = 1) or its square form (p = 2), the weight of each FFN channel.
    """
    family = geometry.family
    up = weights[family.up + ".weight"]
    if family.gate is not None:
        gate, up = family.gate_and_up(weights[family.gate + ".weight"], up, 0)
    if geometry.parallel:
        return torch.ones(up.shape[1], dtype=torch.float64, device=up.device)
    if mode == "bip":
        return 1 + colsum(up, output.float()).double()
    gain = statistics["norm_rate"]
    if (norm := f"{family.ffn_norm}.weight") in weights:
        weight = weights[norm].double() + family.norm_offset
        gain = weight.abs() * gain
    if family.gate is None:
        p = 1 if mode == "bip-gated" else 2
        passed = colsum(up, (output * statistics["slopes"][p - 1]).float(), p=p)
        return 1 + gain**p * passed.double()
    activated, up_size, activated_square, slope_square = statistics["gated"]
    if mode == "bip-gated":
        slope = LIPSCHITZ[geometry.activation] * up_size
        through_up, through_gate, p = activated, slope, 1
    else:
        through_up, through_gate, p = activated_square, slope_square, 2
    passed = colsum(up, (output * through_up).float(), p=p)
    passed = passed + colsum(gate, (output * through_gate).float(), p=p)
    return 1 + gain**p * passed.double()
