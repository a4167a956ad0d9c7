"""Gradients of operators by other operators."""

from collections.abc import Callable

import torch

from compressor.kernels.dispatch import LIBRARY, Op


def differentiable(op: Op, gradient: Callable, save: Callable) -> Callable:
    """`op` as a differentiable function `call(*inputs, backend=None)`.

    save(ctx, inputs, output) keeps what gradient(ctx, grad, backend) needs, which gives one gradient,
    or None, for every input. A forced backend is forced in both.
    """

    def default(ctx, grad):
        return gradient(ctx, grad, None)

    torch.library.register_autograd(
        f"compressor::{op.name}", default, setup_context=save, lib=LIBRARY
    )

    class Forced(torch.autograd.Function):
        """A forced backend does not go through torch's dispatcher."""

        @staticmethod
        def forward(*inputs):
            return op(*inputs[:-1], backend=inputs[-1])

        @staticmethod
        def setup_context(ctx, inputs, output):
            *inputs, ctx.backend = inputs
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx, grad):
            return *gradient(ctx, grad, ctx.backend), None

    def call(*inputs, backend: str | None = None):
        return op(*inputs) if backend is None else Forced.apply(*inputs, backend)

    return call


def with_gradient(op: Op, backward: Op, tensors: int) -> Callable:
    """`differentiable`, where backward(grad, *inputs) gives the gradients of all tensors at once.

    The first `tensors` inputs are tensors, the others are not.
    """

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def gradient(ctx, grad, backend):
        found = backward(grad, *ctx.saved_tensors, *ctx.options, backend=backend)
        return (*found, *(None for _ in ctx.options))

    return differentiable(op, gradient, save)
