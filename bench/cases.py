"""What is timed: for every op its inputs at real models' shapes, its baselines, and what it must move.

A case's `bytes` are those of a perfect implementation: every input read once, every output written
once. `operations` counts float operations. Every provider returns tensors that are compared with
those of the op's own reference before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compressor.kernels import colsum

MATRICES = {
    "cuda": [
        (1024, 4096),
        (4096, 4096),
        (11008, 4096),
        (4096, 11008),
        (14336, 4096),
        (8192, 8192),
        (28672, 8192),
    ],
    "cpu": [(4096, 4096), (4096, 11008)],
}


@dataclass(frozen=True)
class Case:
    """One op on one input. providers: name -> call; `ours` is the device's default."""

    bytes: int
    operations: int
    providers: dict[str, Callable]
    compare: Callable = torch.testing.assert_close


@dataclass(frozen=True)
class Family:
    """Cases of one op: from a shape and a device; shapes and providers by device."""

    build: Callable[[tuple, str], Case]
    shapes: dict[str, list[tuple]]
    providers: dict[str, tuple[str, ...]]


def colsum_case(shape: tuple[int, int], device: str) -> Case:
    weight = torch.randn(shape, device=device).bfloat16()
    scale = torch.rand(shape[0], device=device)
    return Case(
        bytes=weight.nbytes + scale.nbytes + 4 * shape[1],
        operations=3 * weight.numel(),
        providers={
            "ours": lambda: colsum.colsum(weight, scale, 2),
            "eager": lambda: colsum.colsum(weight, scale, 2, backend="ref"),
            "compile": compiled(colsum.OP, weight, scale, 2),
        },
    )


def compiled(op, *arguments) -> Callable:
    """The reference through `torch.compile`; compiling happens in the first call."""
    function = torch.compile(op.implementations["ref"])
    return lambda: function(*arguments)


# torch.compile is a baseline on GPUs; on a CPU it compiles for longer than everything else runs.
PLAIN = {"cuda": ("ours", "eager", "compile"), "cpu": ("ours", "eager")}

CASES = {
    "colsum": Family(colsum_case, MATRICES, PLAIN),
}
