"""Gradients of operators by other operators."""

import inspect
from collections.abc import Callable, Iterable

import torch

from compressor.kernels.dispatch import LIBRARY, Op


def differentiable(op: Op, gradient: Callable, save: Callable) -> Callable:
    """`op` as a differentiable function `call(*inputs, backend=None)`.

    save(ctx, inputs, output) keeps what gradient(ctx, grad, backend) needs, which gives one gradient,
    or None, for every input; a list of tensors has a list of gradients. A forced backend is forced
    in both.
    """

    def default(ctx, grad):
        return gradient(ctx, grad, None)

    torch.library.register_autograd(
        f"compressor::{op.name}", default, setup_context=save, lib=LIBRARY
    )

    class Gradient(torch.autograd.Function):
        """Of real tensors, with any backend. Autograd sees those that need a gradient only: the others,
        as 21 of the 22 of a block's mask, cost nothing."""

        @staticmethod
        def forward(backend, inputs, needed, *seen):
            output = op(*inputs, backend=backend)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def setup_context(ctx, arguments, output):
            ctx.backend, inputs, ctx.needed, *_ = arguments
            ctx.many = isinstance(output, tuple)
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *grads):
            seen, ctx.needs_input_grad = ctx.needs_input_grad, ctx.needed
            found = gradient(ctx, list(grads) if ctx.many else grads[0], ctx.backend)
            ctx.needs_input_grad = seen  # for the next time, where the graph is kept
            flat, needed = flattened(found), flattened(ctx.needed)
            return None, None, None, *(g for g, n in zip(flat, needed, strict=True) if n)

    # Torch asks for it at every call, and making it takes longer than many an op.
    Gradient.forward.__signature__ = inspect.signature(Gradient.forward)

    def call(*inputs, backend: str | None = None):
        if backend is None and torch.compiler.is_compiling():
            return op(*inputs)
        needed = [
            [needs_gradient(v) for v in value] if isinstance(value, list) else needs_gradient(value)
            for value in inputs
        ]
        pairs = zip(flattened(inputs), flattened(needed), strict=True)
        output = Gradient.apply(backend, inputs, needed, *(v for v, n in pairs if n))
        return list(output) if isinstance(output, tuple) else output

    return call


def needs_gradient(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def flattened(values: Iterable) -> list:
    """The values, and those of lists among them."""
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


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
