"""Per-channel sums of activations, X[tokens, channels], from one read.

    moments:        sum_t |x|,  sum_t x,  sum_t x^2
    gated_moments:  sum_t |phi(g)|,  sum_t |u|,  sum_t phi(g)^2,  sum_t (u phi'(g))^2

The first are what LLM-BIP, Wanda and FLAP weigh channels by; the second are the factors by which a
change of the FFN's input passes through a gated FFN phi(g) * u (the product rule).
"""

import torch

MOMENTS = ("absolute", "sum", "square")
GATED_MOMENTS = ("activated", "up", "activated_square", "slope_square")


def moments(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over the tokens of x [..., channels]; mask [...] is true where a token counts.

    Returns float32 [3, channels] in the order of `MOMENTS`.
    """
    x = _tokens(x, mask)
    return torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0)))


def gated_moments(
    gate: torch.Tensor, up: torch.Tensor, activation: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums over the tokens of gate and up [..., channels] before the activation phi.

    activation: a key of `ACTIVATIONS`. Returns float32 [4, channels] in order of `GATED_MOMENTS`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"gated_moments: activation is {activation!r}; known: {[*ACTIVATIONS]}.")
    gate, up = _tokens(gate, mask), _tokens(up, mask)
    value, slope = ACTIVATIONS[activation](gate)
    return torch.stack(
        (value.abs().sum(0), up.abs().sum(0), value.square().sum(0), (up * slope).square().sum(0))
    )


def _tokens(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"moments: mask is {tuple(mask.shape)}, x is {tuple(x.shape)}.")
    x = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cdf = 0.5 * (1 + torch.erf(x / 2**0.5))
    return x * cdf, cdf + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


# phi and its derivative; the largest slope is the Lipschitz constant of LLM-BIP's bound.
ACTIVATIONS = {"silu": _silu, "gelu": _gelu}
LIPSCHITZ = {"silu": 1.09984, "gelu": 1.12890}
