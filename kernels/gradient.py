"""Gradients of operators by other operators."""

from collections.abc import Callable

import torch

from compressor.kernels.dispatch import LIBRARY, Op


def with_gradient(op: Op, backward: Op, tensors: int) -> Callable:
    """`op` as a differentiable function `call(*inputs, backend=None)`.

    The first `tensors` inputs are tensors, the others are not. backward(grad, *inputs) gives the
    gradients of the tensors. It takes the same forced backend.
    """

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def gradient(ctx, grad):
        found = backward(grad, *ctx.saved_tensors, *ctx.options)
        return (*found, *(None for _ in ctx.options))

    torch.library.register_autograd(
        f"compressor::{op.name}", gradient, setup_context=save, lib=LIBRARY
    )

    class Forced(torch.autograd.Function):
        """A forced backend does not go through torch's dispatcher."""

        @staticmethod
        def forward(backend, *inputs):
            return op(*inputs, backend=backend)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.backend = inputs[0]
            save(ctx, inputs[1:], output)

        @staticmethod
        def backward(ctx, grad):
            found = backward(grad, *ctx.saved_tensors, *ctx.options, backend=ctx.backend)
            return (None, *found, *(None for _ in ctx.options))

    def call(*inputs, backend: str | None = None):
        return op(*inputs) if backend is None else Forced.apply(backend, *inputs)

    return call
