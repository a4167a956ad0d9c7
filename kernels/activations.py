"""Activations phi of gated feed-forward layers: value, slope, Lipschitz constant.

Three forms of each: torch's own function, which models call; value and slope in plain PyTorch, which
define what the kernels compute; and both in Triton.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from compressor.kernels.triton_support import INTERPRETED, MISSING, jit, tl

if MISSING is None and not INTERPRETED:
    # CUDA's own functions: the one that torch calls, and those of the fewest instructions.
    from triton.language.extra.cuda.libdevice import erfc, exp
    from triton.language.extra.cuda.libdevice import fast_dividef as quick_divide
    from triton.language.extra.cuda.libdevice import fast_expf as quick_exp
else:

    @jit
    def erfc(x):
        return 1.0 - tl.math.erf(x)

    @jit
    def exp(x):
        return tl.exp(x)

    @jit
    def quick_exp(x):
        return tl.exp(x)

    @jit
    def quick_divide(x, y):
        return x / y


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cdf = 0.5 * torch.erfc(-x / 2**0.5)
    return x * cdf, cdf + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


# phi and its derivative; the largest slope is the Lipschitz constant of LLM-BIP's bound.
ACTIVATIONS = {"silu": _silu, "gelu": _gelu}
LIPSCHITZ = {"silu": 1.09984, "gelu": 1.12890}

# As models compute them: in float32, rounded once to the tensor's dtype.
FUNCTIONS = {"silu": functional.silu, "gelu": functional.gelu}


@jit
def activate(x, ACTIVATION: tl.constexpr, ACCURATE: tl.constexpr):
    """Value and slope of phi at x (float32).

    ACCURATE: the value has the bits of torch's CUDA kernels, which take the same exponential and
    the same division. Without, it is right to a few units in the last place.
    """
    if ACTIVATION == "silu":
        if ACCURATE:
            rest = 1.0 + exp(-x)
            value = tl.math.div_rn(x, rest)
            sigmoid = quick_divide(1.0, rest)
        else:
            sigmoid = quick_divide(1.0, 1.0 + quick_exp(-x))
            value = x * sigmoid
        slope = sigmoid * (1.0 + x * (1.0 - sigmoid))
    else:
        cdf = 0.5 * erfc(x * -0.7071067811865476)
        value = x * 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) if ACCURATE else x * cdf
        slope = cdf + x * 0.3989422804014327 * quick_exp(-0.5 * x * x)
    return value, slope
