"""Activations phi of gated feed-forward layers: value, slope, Lipschitz constant.

Three forms of each: torch's own function, which models call; value and slope in plain PyTorch, which
define what the kernels compute; and both in Triton.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from compressor.kernels.triton_support import INTERPRETED, MISSING, jit, tl

if MISSING is None and not INTERPRETED:
    # CUDA's own functions: the one that torch calls, and those of the fewest instructions.
    from triton.language.extra.cuda.libdevice import exp, tanh
    from triton.language.extra.cuda.libdevice import fast_dividef as quick_divide
    from triton.language.extra.cuda.libdevice import fast_expf as quick_exp
else:

    @jit
    def exp(x):
        return tl.exp(x)

    @jit
    def tanh(x):
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0

    @jit
    def quick_exp(x):
        return tl.exp(x)

    @jit
    def quick_divide(x, y):
        return x / y


# gelu_pytorch_tanh is x (1 + tanh u) / 2, 2 u = TANH_SCALE (x + TANH_CUBE x^3).
TANH_SCALE, TANH_CUBE = 2 * (2 / torch.pi) ** 0.5, 0.044715


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cdf = 0.5 * torch.erfc(-x / 2**0.5)
    return x * cdf, cdf + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


def _gelu_tanh(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # (1 + tanh u) / 2 is the logistic function of 2 u, which loses no digits where it is small.
    s = torch.sigmoid(TANH_SCALE * (x + TANH_CUBE * x**3))
    return x * s, s + x * (s * (1 - s)) * (TANH_SCALE * (1 + 3 * TANH_CUBE * x * x))


# phi and its derivative; the largest slope is the Lipschitz constant of LLM-BIP's bound.
ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_pytorch_tanh": _gelu_tanh}
LIPSCHITZ = {"silu": 1.09984, "gelu": 1.12890, "gelu_pytorch_tanh": 1.12899}

# As models compute them: in float32, rounded once to the tensor's dtype.
FUNCTIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}


@jit
def normal_tail(size, bell):
    """Phi(-size), the normal distribution's tail, for size >= 0 and bell = exp(-size^2 / 2).

    A polynomial in t = 1 / (1 + 0.28 size), a minimax fit of the ratio of both: 2e-7 of the result, far
    down the tail too, at a third of the instructions of erfc.
    """
    t = quick_divide(1.0, 1.0 + 0.28 * size)
    ratio = 0.024719972163438797 * t - 0.09359312057495117
    ratio = ratio * t + 0.09242811053991318
    ratio = ratio * t - 0.006449172738939524
    ratio = ratio * t + 0.07277500629425049
    ratio = ratio * t + 0.08363079279661179
    ratio = ratio * t + 0.10308466106653214
    ratio = ratio * t + 0.11169980466365814
    ratio = ratio * t + 0.11170385777950287
    return ratio * t * bell


@jit
def activate(x, ACTIVATION: tl.constexpr, AS_TORCH: tl.constexpr):
    """Value and slope of phi at x (float32).

    AS_TORCH: the value has the bits of torch's CUDA kernels, which take the same exponential and
    the same division, at twice the instructions. Without, it is right to a few units in the last
    place of a float32, which is as good wherever it is rounded to 16 bits.
    """
    if ACTIVATION == "silu":
        if AS_TORCH:
            rest = 1.0 + exp(-x)
            value = tl.math.div_rn(x, rest)
            sigmoid = quick_divide(1.0, rest)
        else:
            sigmoid = quick_divide(1.0, 1.0 + tl.exp2(-1.4426950408889634 * x))
            value = x * sigmoid
        slope = sigmoid + value * (1.0 - sigmoid)
    elif ACTIVATION == "gelu":
        bell = quick_exp(-0.5 * x * x)
        tail = normal_tail(tl.abs(x), bell)
        cdf = tl.where(x < 0, tail, 1.0 - tail)
        value = x * 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) if AS_TORCH else x * cdf
        slope = cdf + x * 0.3989422804014327 * bell
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * (x * x * x))
        s = quick_divide(1.0, 1.0 + quick_exp(-2.0 * inner))
        value = 0.5 * x * (1.0 + tanh(inner)) if AS_TORCH else x * s
        slope = s + x * (s * (1.0 - s)) * (1.5957691216057308 + 0.21406444881780076 * x * x)
    return value, slope
