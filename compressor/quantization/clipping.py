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

from compressor.errors import InputError
from compressor.model.activations import Activations
from compressor.model.block import Block, relative_error
from compressor.quantization.scheme import LEAST, MOST, dequantized, integers, scales, stored_scales

EPOCHS = 2
RATE = 0.01  # of the first step; linearly down to none
SHORTEST = 0.1  # gammas stay above: a scale of nothing cannot come back
SCALE = 2.0**16  # of the loss: in float16, gradients of a millionth would be lost


def straight_through(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W^ [out, in] in the weight's dtype, differentiable in the scales [out, in / group] (float32)."""
    ratio = weight.to(scale.dtype).unflatten(-1, (scale.shape[-1], -1)) / scale[..., None]
    nearest = ratio.detach().round()
    q = nearest.clamp(LEAST, MOST)
    moving = torch.where(q == nearest, ratio - ratio.detach(), 0)  # 0, with the ratio's gradient
    return ((q + moving) * scale[..., None]).flatten(-2).to(weight.dtype)


class Clipping:
    """The gammas of a block's weights, from 1 on, and the steps that train them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], group: int, steps: int):
        self.weights, self.group = weights, group
        self.gammas = {
            name: torch.ones(2, len(w), w.shape[1] // group, device=w.device, requires_grad=True)
            for name, w in weights.items()
        }
        self.optimizer = torch.optim.AdamW(self.gammas.values(), lr=RATE, weight_decay=0)
        self.rate = LinearLR(self.optimizer, 1, 0, steps)

    def scale(self, name: str) -> torch.Tensor:
        """h float32 [out, in / group] of a weight, differentiable in its gammas."""
        scale = scales(self.weights[name], self.group, self.gammas[name])
        return scale.clamp_min(torch.finfo(torch.float32).tiny)  # of a group of zeros

    def quantized(self) -> dict[str, torch.Tensor]:
        """The quantised weights, differentiable in the gammas."""
        return {name: straight_through(w, self.scale(name)) for name, w in self.weights.items()}

    @torch.no_grad()
    def stored(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The same with scales rounded as they are stored."""
        rounded = {}
        for name, weight in self.weights.items():
            scale = stored_scales(self.scale(name), dtype)
            rounded[name] = dequantized(integers(weight, scale), scale).to(weight.dtype)
        return rounded

    @torch.no_grad()
    def step(self, scaled: float) -> None:
        """One step by the gradients of a loss that was multiplied by `scaled`."""
        for gamma in self.gammas.values():
            gamma.grad /= scaled
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        for gamma in self.gammas.values():
            gamma.clamp_(SHORTEST, 1)


@torch.enable_grad()
def learn(
    block: Block,
    targets: Activations,
    fitted: Sequence[int],
    held: Sequence[int],
    group: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The gammas of a block, and its held-back loss at the start and after every epoch.

    targets: the output that the block should have on each sequence. dtype: in which scales are
    stored. The seed draws the order of the sequences. InputError for a loss that is not finite.
    """
    clipping = Clipping(block.weights, group, EPOCHS * len(fitted))

    def loss(weights: Mapping[str, torch.Tensor], sequence: int) -> torch.Tensor:
        return relative_error(block.run(sequence, weights), targets.get(sequence, block.device))

    @torch.no_grad()
    def held_back() -> float:
        weights = clipping.stored(dtype)
        return sum(loss(weights, i).item() for i in held) / len(held)

    generator = torch.Generator().manual_seed(seed)
    losses, best = [held_back()], copied(clipping.gammas)
    for _ in range(EPOCHS):
        for position in torch.randperm(len(fitted), generator=generator).tolist():
            (loss(clipping.quantized(), fitted[position]) * SCALE).backward()
            clipping.step(SCALE)
        losses.append(held_back())
        if losses[-1] < min(losses[:-1]):
            best = copied(clipping.gammas)
    if not torch.tensor(losses).isfinite().all():
        raise InputError(
            f"The loss of block {block.index} is not finite while its clipping is learned; "
            "try --dtype float32."
        )
    return best, losses


def copied(gammas: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: gamma.detach().clone() for name, gamma in gammas.items()}
