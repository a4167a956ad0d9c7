"""What servers round besides weights: the inputs of projections, every token by a scale of its own."""

from collections.abc import Iterable

import torch
from torch import nn

FLOAT8 = torch.float8_e4m3fn
MOST = torch.finfo(FLOAT8).max


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x [..., channels] as FP8 numbers times max|x| / 448 of every token, in its dtype."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / MOST).clamp_min(torch.finfo(torch.float32).tiny)
    return ((wide / scale).to(FLOAT8).float() * scale).to(x.dtype)


def round_inputs(layers: nn.ModuleList, projections: Iterable[str]) -> None:
    """Have the projections of every layer, by the names of their weights in it, read rounded inputs."""
    for layer in layers:
        for name in projections:
            module = layer.get_submodule(name.removesuffix(".weight"))
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
