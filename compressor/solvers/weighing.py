"""What a token counts in sums over tokens: as much as the norm that reads the stream lets through."""

import torch


def rates(stream: torch.Tensor) -> torch.Tensor:
    """1 / root mean square of every token [tokens, 1], in float32 or better."""
    return wide(stream).square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
