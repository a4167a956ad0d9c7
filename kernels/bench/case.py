"""A benchmark case: one op on one input, its baselines, and what it must move.

`bytes` are those of a perfect implementation: every input read once, every output written once.
`operations` counts float operations. Every provider's output is compared with eager PyTorch's before
anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One op on one input. providers: name -> call; `ours` is the device's default."""

    bytes: int
    operations: int
    providers: dict[str, Callable]
    compare: Callable = torch.testing.assert_close


@dataclass(frozen=True)
class Family:
    """Cases of one op: from a shape, a device and a dtype's name; shapes and providers by device.

    dtypes: the names that the op's case can be of; the first is the one that is timed by default.
    """

    build: Callable[[tuple, str, str], Case]
    shapes: dict[str, list[tuple]]
    providers: dict[str, tuple[str, ...]]
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")

    def case(self, shape: tuple, device: str, dtype: str | None = None) -> Case:
        return self.build(shape, device, dtype or self.dtypes[0])


def drawn(shape: tuple, device: str, dtype: str) -> torch.Tensor:
    """Normal numbers, the same ones in every dtype but for their rounding."""
    return torch.randn(shape, device=device).to(getattr(torch, dtype))


def compiled(eager: Callable, *arguments) -> Callable:
    """The same through `torch.compile`, for these very shapes; it compiles in the first call."""
    function = torch.compile(eager, dynamic=False)
    return lambda: function(*arguments)


def differentiated(function: Callable, grad: torch.Tensor, *inputs: torch.Tensor) -> Callable:
    """A call for the output and the gradient of every input, given the output's gradient."""

    def run() -> tuple:
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = function(*leaves)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    return run


def closely(ours, expected) -> None:
    """bfloat16 to its rounding; sums of n float32 terms of any sign to sqrt(n) of theirs."""
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=5e-2)


def roughly(ours, expected) -> None:
    """Gates' gradients: eager PyTorch sums them after rounding every product to 16 bits."""
    for mine, theirs in zip(ours, expected, strict=True):
        error = torch.linalg.vector_norm(mine.float() - theirs.float())
        assert error <= 1e-2 * torch.linalg.vector_norm(theirs.float()), error


def exactly(ours, expected) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
