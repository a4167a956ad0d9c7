"""What is timed: for every op its inputs at real models' shapes, its baselines, and what it must move.

A case's `bytes` are those of a perfect implementation: every input read once, every output written
once. `operations` counts float operations. Every provider returns tensors that are compared with
those of the op's own reference before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from compressor.kernels import colsum, compact, gated_swiglu, moments, swiglu_moments, taylor

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

# Tokens and channels of activations.
TOKENS = {
    "cuda": [(2048, 4096), (2048, 11008), (2048, 28672), (16384, 14336), (65536, 11008)],
    "cpu": [(2048, 5632), (2048, 11008)],
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


def moments_case(shape: tuple[int, int], device: str) -> Case:
    x = torch.randn(shape, device=device).bfloat16()
    return Case(
        bytes=x.nbytes + 3 * 4 * shape[1],
        operations=4 * x.numel(),
        providers={
            "ours": lambda: moments.moments(x),
            "eager": lambda: eager_moments(x),
            "compile": compiled(eager_moments, x),
        },
        compare=close_sums,
    )


def gated_moments_case(shape: tuple[int, int], device: str) -> Case:
    """All seven sums of a gated layer, h left where the model has it."""
    gate, up = (torch.randn(shape, device=device).bfloat16() for _ in range(2))

    def eager(gate, up):
        return eager_moments(functional.silu(gate) * up), eager_factors(gate, up)

    return Case(
        bytes=gate.nbytes + up.nbytes + 7 * 4 * shape[1],
        operations=25 * gate.numel(),
        providers={
            "ours": lambda: swiglu_moments.gated_moments(gate, up),
            "eager": lambda: eager(gate, up),
            "compile": compiled(eager, gate, up),
        },
        compare=close_sums,
    )


def swiglu_moments_case(shape: tuple[int, int], device: str) -> Case:
    """h and the seven sums."""
    gate, up = (torch.randn(shape, device=device).bfloat16() for _ in range(2))

    def eager(gate, up):
        h = functional.silu(gate) * up
        return h, eager_moments(h), eager_factors(gate, up)

    def compare(ours, expected):
        torch.testing.assert_close(ours[0], expected[0], rtol=2e-2, atol=1e-5)  # a compiler fuses
        close_sums(ours[1:], expected[1:])

    return Case(
        bytes=3 * gate.nbytes + 7 * 4 * shape[1],
        operations=25 * gate.numel(),
        providers={
            "ours": lambda: swiglu_moments.swiglu_moments(gate, up),
            "eager": lambda: eager(gate, up),
            "compile": compiled(eager, gate, up),
        },
        compare=compare,
    )


def gated_swiglu_case(shape: tuple[int, int], device: str) -> Case:
    """The gated layer forward, and backward to gate, up and z."""
    gate, up = (torch.randn(shape, device=device).bfloat16().requires_grad_() for _ in range(2))
    z = (torch.rand(shape[1], device=device) > 0.5).float().requires_grad_()
    grad = torch.randn(shape, device=device).bfloat16()

    def eager(gate, up, z):
        return functional.silu(gate) * up * z.to(gate.dtype)

    def both_ways(forward):
        return lambda: torch.autograd.grad(forward(gate, up, z), (gate, up, z), grad)

    def compare(ours, expected):
        for mine, theirs in zip(ours, expected, strict=True):
            error = (mine - theirs).norm() / theirs.norm()
            assert error < 1e-2, error  # eager rounds every step of its backward pass to bfloat16

    return Case(
        bytes=8 * gate.nbytes + 2 * 4 * shape[1],
        operations=25 * gate.numel(),
        providers={
            "ours": both_ways(gated_swiglu.gated_swiglu),
            "eager": both_ways(eager),
            "compile": both_ways(torch.compile(eager)),
        },
        compare=compare,
    )


def eager_moments(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0)))


def eager_factors(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.float(), up.float()
    s = torch.sigmoid(gate)
    value, through = gate * s, up * (s * (1 + gate * (1 - s)))
    terms = value.abs(), up.abs(), value.square(), through.square()
    return torch.stack([t.sum(0) for t in terms])


def close_sums(ours, expected) -> None:
    """Within 1e-3 of the norm: a bfloat16 h may round elsewhere, and a signed sum cancels."""
    pairs = zip(ours, expected, strict=True) if isinstance(ours, tuple) else [(ours, expected)]
    for mine, theirs in pairs:
        assert ((mine - theirs).norm(dim=1) <= 1e-3 * theirs[0].norm()).all()


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
    "moments": Family(moments_case, TOKENS, PLAIN),
    "gated_moments": Family(gated_moments_case, TOKENS, PLAIN),
    "swiglu_moments": Family(swiglu_moments_case, TOKENS, PLAIN),
    "gated_swiglu": Family(gated_swiglu_case, TOKENS, PLAIN),
}
