"""Floating-point numbers of 8 and 4 bits: the scales of weights, as compressed-tensors takes them.

FP8 (E4M3, up to 448): a row w of W has the scale h = max|w| / 448.

NVFP4 (E2M1, up to 6, by groups of input channels): the matrices that read the same input, which servers
multiply at once, share g = 448 * 6 / max|W|; a group has the FP8 scale s = max|w| / 6 * g, and what is
stored stands for w s / g.
"""

from collections.abc import Iterable

import torch

from compressor.config.packing import FP8, Packing
from compressor.model.float8 import FLOAT8, MOST
from compressor.quantization.scheme import stored_scales
from compressor.writing.packing import GLOBAL, SCALE

MOST4 = 6.0
LEAST8 = 2.0**-9  # above 0


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """h [out, 1] in the weight's dtype."""
    return stored_scales(largest(weight)[:, None] / MOST, weight.dtype)


def shared_scale(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """g float32 [1] of matrices that read the same."""
    most = max(largest(weight).amax().item() for weight in weights)
    return torch.tensor([MOST * MOST4 / most if most else 1.0], dtype=torch.float32)


def group_scales(weight: torch.Tensor, group: int, shared: torch.Tensor) -> torch.Tensor:
    """s float8 [out, in / group]."""
    scale = largest(weight.unflatten(-1, (-1, group))) / MOST4 * shared
    return scale.clamp(LEAST8, MOST).to(FLOAT8)


def largest(weight: torch.Tensor) -> torch.Tensor:
    """max|w| along the last axis, in float32."""
    return weight.abs().amax(-1).float()


def scales_of(
    weights: dict[str, torch.Tensor], readers: Iterable[Iterable[str]], packing: Packing
) -> dict[str, dict[str, torch.Tensor]]:
    """The scales of a block's weights, by the ends of the names that they are stored by.

    readers: names of those that read the same.
    """
    if packing.scheme == FP8:
        return {name: {SCALE: row_scales(weight)} for name, weight in weights.items()}
    scales = {}
    for names in readers:
        shared = shared_scale(weights[name] for name in names)
        for name in names:
            group = group_scales(weights[name], packing.group, shared)
            scales[name] = {SCALE: group, GLOBAL: shared}
    return scales
