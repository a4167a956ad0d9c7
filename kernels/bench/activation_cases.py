"""Cases of the ops on activations, at the widths of real models."""

import torch

from compressor.kernels import gate, gated_swiglu, moments, swiglu_moments
from compressor.kernels.bench.case import Case, closely, compiled, differentiated, drawn, roughly

GROUP = 128  # channels of a head


def moments_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    x = drawn(shape, device, dtype)

    def eager(x):
        x = x.float()
        return torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0)))

    return Case(
        bytes=x.nbytes + 3 * 4 * shape[1],
        operations=4 * x.numel(),
        providers={
            "ours": lambda: moments.moments(x),
            "eager": lambda: eager(x),
            "compile": compiled(eager, x),
        },
        compare=closely,
    )


def swiglu_moments_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """The layer's own product, with its moments and the factors of the gated layer."""
    g, u = (drawn(shape, device, dtype) for _ in range(2))

    def eager(gate, up):
        h = torch.nn.functional.silu(gate) * up
        g, u, x = gate.float(), up.float(), h.float()
        s = torch.sigmoid(g)
        value, slope = g * s, s * (1 + g * (1 - s))
        inner = torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0)))
        factors = (value.abs(), u.abs(), value.square(), (slope * u).square())
        return h, inner, torch.stack([f.sum(0) for f in factors])

    return Case(
        bytes=3 * g.nbytes + 7 * 4 * shape[1],
        operations=24 * g.numel(),
        providers={
            "ours": lambda: swiglu_moments.swiglu_moments(g, u),
            "eager": lambda: eager(g, u),
            "compile": compiled(eager, g, u),
        },
        compare=sums_closely,
    )


def sums_closely(ours, expected) -> None:
    """Sums of h itself to a share of those of |h|: what is compiled adds h up before it is rounded."""
    (h, inner, factors), (wanted_h, wanted, wanted_factors) = ours, expected
    closely((h, inner[0], inner[2], factors), (wanted_h, wanted[0], wanted[2], wanted_factors))
    assert ((inner[1] - wanted[1]).abs() <= 1e-2 * wanted[0]).all()


def gated_swiglu_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Forward and backward with a learned gate on every channel."""
    g, u, grad = (drawn(shape, device, dtype) for _ in range(3))
    z = (torch.rand(shape[1], device=device) < 0.5).float()

    def eager(g, u, z):
        return torch.nn.functional.silu(g) * u * z.to(g.dtype)

    def ours(g, u, z):
        return gated_swiglu.gated_swiglu(g, u, z)

    return Case(
        bytes=8 * g.nbytes + 8 * shape[1],
        operations=20 * g.numel(),
        providers={
            "ours": differentiated(ours, grad, g, u, z),
            "eager": differentiated(eager, grad, g, u, z),
            "compile": differentiated(torch.compile(eager, dynamic=False), grad, g, u, z),
        },
        compare=roughly,
    )


def gate_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Forward and backward with a learned gate on every head."""
    x, noise = (drawn(shape, device, dtype) for _ in range(2))
    grad = x + noise  # so that a group's gradient, one sum of many numbers, is not near zero
    group = min(GROUP, shape[1])
    z = (torch.rand(shape[1] // group, device=device) < 0.5).float()

    def eager(x, z):
        return x * z.to(x.dtype).repeat_interleave(group)

    def ours(x, z):
        return gate.gated(x, z, group)

    return Case(
        bytes=5 * x.nbytes + 8 * len(z),
        operations=4 * x.numel(),
        providers={
            "ours": differentiated(ours, grad, x, z),
            "eager": differentiated(eager, grad, x, z),
            "compile": differentiated(torch.compile(eager, dynamic=False), grad, x, z),
        },
        compare=roughly,
    )
