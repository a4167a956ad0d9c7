"""Cases of the ops on weights, at the shapes of real models' matrices."""

import torch
from case import Case, compiled, exactly

from compressor.kernels import colsum, compact, taylor


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
