"""Per-channel sums of activations, X[tokens, channels], from one read.

    moments:        sum_t |x|,  sum_t x,  sum_t x^2
    gated_moments:  sum_t |phi(g)|,  sum_t |u|,  sum_t phi(g)^2,  sum_t (u phi'(g))^2

The first are what LLM-BIP, Wanda and FLAP weigh channels by; the second are the factors by which a
change of the FFN's input passes through a gated FFN phi(g) * u (the product rule).
"""

from collections.abc import Iterator

import torch

TOKENS = 256
MOMENTS = ("absolute", "sum", "square")
GATED_MOMENTS = ("activated", "up", "activated_square", "slope_square")


def moments(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over the tokens of x [..., channels]; mask [...] is true where a token counts.

    Returns [3, channels] in the order of `MOMENTS`, float32 (float64 for x of that type).
    """
    total = torch.zeros(len(MOMENTS), x.shape[-1], dtype=_exact(x), device=x.device)
    for part in _parts(x, mask):
        total += torch.stack((part.abs().sum(0), part.sum(0), part.square().sum(0)))
    return total


def gated_moments(
    gate: torch.Tensor, up: torch.Tensor, activation: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums over the tokens of gate and up [..., channels] before the activation phi.

    activation: a key of `ACTIVATIONS`. Returns [4, channels] in the
    order of `GATED_MOMENTS`, float32 (float64 for inputs of that type).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"gated_moments: activation is {activation!r}; known: {[*ACTIVATIONS]}.")
    total = torch.zeros(len(GATED_MOMENTS), up.shape[-1], dtype=_exact(up), device=up.device)
    for g, u in zip(_parts(gate, mask), _parts(up, mask), strict=True):
        value, slope = ACTIVATIONS[activation](g)
        value_square, slope_square = value.square().sum(0), slope.mul_(u).square().sum(0)
        total += torch.stack((value.abs().sum(0), u.abs().sum(0), value_square, slope_square))
    return total


def _exact(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _parts(x: torch.Tensor, mask: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The counted tokens, widened a few at a time: no such copy of all of x is made."""
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"moments: mask is {tuple(mask.shape)}, x is {tuple(x.shape)}.")
    x = x.reshape(-1, x.shape[-1])
    keep = None if mask is None or mask.all() else mask.flatten()
    for begin in range(0, len(x), TOKENS):
        part = x[begin : begin + TOKENS]
        if keep is not None:
            part = part[keep[begin : begin + TOKENS]]
        yield part.to(_exact(x))


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cdf = 0.5 * (1 + torch.erf(x / 2**0.5))
    return x * cdf, cdf + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


# phi and its derivative; the largest slope is the Lipschitz constant of LLM-BIP's bound.
ACTIVATIONS = {"silu": _silu, "gelu": _gelu}
LIPSCHITZ = {"silu": 1.09984, "gelu": 1.12890}
