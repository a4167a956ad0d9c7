"""W4A16: the arithmetic, on tensors alone.

A weight W [out, in] is divided along its rows into groups of input channels; a group has a scale h and
its weights are the integers

    q = clamp(round(W / h), -8, 7),    h = max(gamma1 max(W), -gamma0 min(W)) / 7.5,    W^ = h q

gamma0 = gamma1 = 1 is rounding to nearest, as compressed-tensors scales it. Below 1 they clip: BESA's
equation 7 (arXiv 2402.16880, section 3.3, after OmniQuant's learnable clipping), there with a zero
point. Without one, as here, 0 stays exactly 0, so that pruned weights stay pruned, and of the two ends
the one that reaches further decides.
"""

import torch

LEAST, MOST = -8, 7
HALF_RANGE = (MOST - LEAST) / 2


def scales(weight: torch.Tensor, group: int, gamma: torch.Tensor | None = None) -> torch.Tensor:
    """h [out, in / group] in float32 or better, differentiable in gamma [2, out, in / group].

    gamma[0] shrinks the least weight of each group and gamma[1] the largest; None stands for ones.
    """
    grouped = weight.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(-1, (-1, group))
    ends = torch.stack((-grouped.amin(-1), grouped.amax(-1))).clamp_min(0)
    if gamma is not None:
        ends = ends * gamma
    return ends.amax(0) / HALF_RANGE


def stored_scales(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales as they are stored: rounded, and positive, so that one can divide by them."""
    return scale.to(dtype).clamp_min(torch.finfo(dtype).tiny)


def integers(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """q [out, in] as whole numbers in float32 or better; of the scales [out, in / group] as stored."""
    scale = scale.to(torch.promote_types(weight.dtype, torch.float32))
    grouped = weight.to(scale.dtype).unflatten(-1, (scale.shape[-1], -1))
    return (grouped / scale[..., None]).round().clamp(LEAST, MOST).flatten(-2)


def dequantized(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W^ = h q [out, in] in the scales' dtype."""
    return (q.to(scale.dtype).unflatten(-1, (scale.shape[-1], -1)) * scale[..., None]).flatten(-2)
