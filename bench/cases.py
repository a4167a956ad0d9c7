"""What is timed: for every op its inputs at real models' shapes, its baselines, and what it must move.

A case's `bytes` are those of a perfect implementation: every input read once, every output written
once. `operations` counts float operations. Every provider returns tensors that are compared with
those of the op's own reference before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compressor.kernels import colsum, compact, taylor

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
            "compile": compiled(colsum.OP.implementations["ref"], weight, scale, 2),
        },
    )


def taylor_case(shape: tuple[int, int], device: str) -> Case:
    """All statistics of every row and every column."""
    weight, grad = (torch.randn(shape, device=device).bfloat16() for _ in range(2))

    def ours():
        return taylor.taylor(weight, grad, rows=True, columns=True, magnitude=True)[:2]

    def eager(weight, grad):
        w = weight.float()
        p = w * grad.float()
        statistics = (p, p.abs(), p.square(), w.abs(), w.square())
        return tuple(torch.stack([s.sum(axis) for s in statistics]) for axis in (1, 0))

    def compare(ours, expected):
        for mine, theirs in zip(ours, expected, strict=True):
            error = (mine - theirs).abs() / theirs[
                1
            ]  # a signed sum's rounding is that of its terms
            assert error.max() < 1e-5, error.max()

    return Case(
        bytes=weight.nbytes + grad.nbytes + 5 * 4 * sum(shape),
        operations=14 * weight.numel(),
        providers={
            "ours": ours,
            "eager": lambda: eager(weight, grad),
            "compile": compiled(eager, weight, grad),
        },
        compare=compare,
    )


def compact_case(shape: tuple[int, int], device: str) -> Case:
    """Half of the rows and half of the columns, at random."""
    weight = torch.randn(shape, device=device).bfloat16()
    rows, columns = (kept_half(size, device) for size in shape)
    return Case(
        bytes=weight.nbytes // 2 + weight.nbytes // 4,
        operations=0,
        providers={
            "ours": lambda: compact.compact(weight, rows, columns),
            "eager": lambda: weight.index_select(0, rows).index_select(1, columns),
        },
        compare=exactly,
    )


def kept_half(size: int, device: str) -> torch.Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))[: size // 2]
    return order.sort().values.to(device)


def exactly(ours, expected) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def compiled(eager: Callable, *arguments) -> Callable:
    """The same through `torch.compile`, which compiles in the first call."""
    function = torch.compile(eager)
    return lambda: function(*arguments)


# torch.compile is a baseline on GPUs; on a CPU it compiles for longer than everything else runs.
PLAIN = {"cuda": ("ours", "eager", "compile"), "cpu": ("ours", "eager")}
UNCOMPILED = dict.fromkeys(PLAIN, ("ours", "eager"))

CASES = {
    "colsum": Family(colsum_case, MATRICES, PLAIN),
    "taylor": Family(taylor_case, MATRICES, PLAIN),
    "compact": Family(compact_case, MATRICES, UNCOMPILED),
}
