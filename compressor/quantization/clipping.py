"""Learned clipping: how far each group's scale shrinks, trained on what the block computes.

Every group of weights has gamma0 and gamma1 (`scheme.scales`; BESA's equation 7, arXiv 2402.16880, after
OmniQuant). The block computes with the quantised weights, on the inputs that the quantised blocks before
it give, and should return what the unquantised block does after unquantised ones; gradients pass the
rounding straight through:

    dW^/dh = q - W/h inside the range, q where it is clipped

AdamW takes all gammas of a block, from 1, which is rounding to nearest, within [`LEAST`, 1]. After every
epoch the loss is taken on sequences held back; the gammas of the smallest one stay, those of the start
included. The loss is the paper's as its program divides it; rate, epochs and the held-back choice are
ours.
"""

from collections.abc import Mapping, Sequence

import torch
from torch.optim.lr_scheduler import LinearLR

from compressor.blocks import Activations
from compressor.errors import InputError
from compressor.quantization.scheme import LEAST, MOST, dequantized, integers, scales, stored_scales
from compressor.sparse.block import Block, relative_error

EPOCHS = 4
RATE = 0.01  # of the first step; linearly down to none
SHORTEST = 0.1  # gammas stay above: a scale of nothing cannot come back
SCALE = 2.0**16  # of the loss: in float16, gradients of a millionth would be lost

Gammas = dict[str, torch.Tensor]


def straight_through(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W^ [out, in] in the weight's dtype, differentiable in the scales [out, in / group] (float32)."""
    ratio = weight.to(scale.dtype).unflatten(-1, (scale.shape[-1], -1)) / scale[..., None]
    q = (ratio + (ratio.round() - ratio).detach()).clamp(LEAST, MOST)
    return (q * scale[..., None]).flatten(-2).to(weight.dtype)


def clipped(weights: Mapping[str, torch.Tensor], gammas: Gammas, group: int) -> Gammas:
    """The quantised weights, differentiable in the gammas."""
    found = {}
    for name, gamma in gammas.items():
        scale = scales(weights[name], group, gamma)
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)  # of a group of zeros
        found[name] = straight_through(weights[name], scale)
    return found


def rounded(
    weights: Mapping[str, torch.Tensor], gammas: Gammas, group: int, dtype: torch.dtype
) -> Gammas:
    """The same as it is stored: scales in `dtype`."""
    found = {}
    for name, gamma in gammas.items():
        scale = stored_scales(scales(weights[name], group, gamma), dtype)
        found[name] = dequantized(integers(weights[name], scale), scale).to(weights[name].dtype)
    return found


def starts(weights: Mapping[str, torch.Tensor], group: int) -> Gammas:
    """Ones [2, out, in / group] for every weight: rounding to nearest."""
    return {
        name: torch.ones(2, len(w), w.shape[1] // group, device=w.device)
        for name, w in weights.items()
    }


@torch.enable_grad()
def learn(
    block: Block,
    targets: Activations,
    fitted: Sequence[int],
    held: Sequence[int],
    group: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[Gammas, list[float]]:
    """The gammas of a block, and its held-back loss at the start and after every epoch.

    targets: the output that the block should have on each sequence. dtype: in which scales are
    stored. The seed draws the order of the sequences. InputError for a loss that is not finite.
    """
    weights, device = block.weights, block.device

    def loss(changed: Mapping[str, torch.Tensor], sequence: int) -> torch.Tensor:
        return relative_error(block.run(sequence, changed), targets.get(sequence, device))

    @torch.no_grad()
    def held_back(gammas: Gammas) -> float:
        changed = rounded(weights, gammas, group, dtype)
        return sum(loss(changed, i).item() for i in held) / len(held)

    best = starts(weights, group)
    trained = {name: gamma.clone().requires_grad_() for name, gamma in best.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0)
    rate = LinearLR(optimizer, 1, 0, EPOCHS * len(fitted))
    generator = torch.Generator().manual_seed(seed)
    losses = [held_back(best)]
    for _ in range(EPOCHS):
        for position in torch.randperm(len(fitted), generator=generator).tolist():
            optimizer.zero_grad()
            (loss(clipped(weights, trained, group), fitted[position]) * SCALE).backward()
            for gamma in trained.values():
                gamma.grad /= SCALE
            optimizer.step()
            rate.step()
            with torch.no_grad():
                for gamma in trained.values():
                    gamma.clamp_(SHORTEST, 1)
        losses.append(held_back(trained))
        if losses[-1] < min(losses[:-1]):
            best = {name: gamma.detach().clone() for name, gamma in trained.items()}
    if not torch.tensor(losses).isfinite().all():
        raise InputError(
            f"The loss of block {block.index} is not finite while its clipping is learned; "
            "try --dtype float32."
        )
    return best, losses
