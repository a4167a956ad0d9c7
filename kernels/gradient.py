"""Gradients of operators by other operators."""

from collections.abc import Callable, Iterable
from itertools import islice

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

    class Forced(torch.autograd.Function):
        """A forced backend does not go through torch's dispatcher, which knows lists of tensors."""

        @staticmethod
        def forward(backend, lengths, *flat):
            output = op(*in_lists(flat, lengths), backend=backend)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.backend, ctx.lengths, *flat = inputs
            ctx.many = isinstance(output, tuple)
            save(ctx, in_lists(flat, ctx.lengths), output)

        @staticmethod
        def backward(ctx, *grads):
            needed = ctx.needs_input_grad
            ctx.needs_input_grad = in_lists(needed[2:], ctx.lengths)
            found = gradient(ctx, list(grads) if ctx.many else grads[0], ctx.backend)
            ctx.needs_input_grad = needed  # for the next time, where the graph is kept
            return None, None, *flattened(found)

    def call(*inputs, backend: str | None = None):
        if backend is None:
            return op(*inputs)
        lengths = [len(i) if isinstance(i, list) else None for i in inputs]
        output = Forced.apply(backend, lengths, *flattened(inputs))
        return list(output) if isinstance(output, tuple) else output

    return call


def flattened(values: Iterable) -> list:
    """The values, and those of lists among them."""
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


def in_lists(flat: Iterable, lengths: list[int | None]) -> list:
    """The opposite of `flattened`: lists of these lengths; None is a value of its own."""
    values = iter(flat)
    return [next(values) if n is None else list(islice(values, n)) for n in lengths]


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
