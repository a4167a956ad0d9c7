"""How a block's weights take their steps: each as soon as its own gradient is whole."""

import weakref
from dataclasses import dataclass

import torch

from compressor.solvers.fixed_order import total

WIDTH = 512  # inputs, beyond which steps fall with the root of their number


@dataclass
class Taking:
    """now: whether the gradient is whole, and the step is taken. over: of how many tokens it is the sum;
    None where it is the mean.
    """

    now: bool = True
    over: int | None = None


def stepping(parameter: torch.Tensor, take: Taking) -> torch.optim.AdamW:
    """An optimizer that moves the parameter in the last backward of every step, which leaves no gradient
    behind.
    """
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    weak = weakref.ref(optimizer)  # held by its parameter, it would outlive the training

    def step(moved: torch.Tensor) -> None:
        if not take.now:
            return
        if take.over is not None:
            moved.grad.div_(take.over)
        weak().step()
        weak().zero_grad()

    parameter.register_post_accumulate_grad_hook(step)
    return optimizer


def step_size(weight: torch.Tensor) -> float:
    """What a rate of 1 moves a weight [outputs, inputs], or a stack of such, by."""
    mean = total(weight.float().square()) / weight.numel()
    return mean.sqrt().item() * min(1, (WIDTH / weight.shape[-1]) ** 0.5)
