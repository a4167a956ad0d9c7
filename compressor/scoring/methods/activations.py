"""Activations phi of FFNs without a gate, by the names that configs give them: value and slope.

They are the models' own functions, and the slope is what their backward computes; those of gated
FFNs, which the kernels know, are `kernels.activations`.
"""

import torch
from transformers.activations import ACT2FN

from compressor.kernels.activations import ACTIVATIONS
from compressor.model.families import Family

PLAIN = ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "silu")


def known(family: Family) -> tuple[str, ...]:
    """The activations whose slope is known in the FFNs of a family."""
    return PLAIN if family.gate is None else tuple(ACTIVATIONS)


def value(x: torch.Tensor, activation: str) -> torch.Tensor:
    """phi(x), in the dtype of x; differentiable."""
    return ACT2FN[activation](x)


def slope(x: torch.Tensor, activation: str) -> torch.Tensor:
    """phi'(x), in the dtype of x; at relu's kink it is 0."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(value(x, activation).sum(), x)[0]
