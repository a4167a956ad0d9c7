"""Applying a plan: gathering the kept rows and columns of a block into smaller dense tensors."""

from collections.abc import Mapping, Sequence

import torch

from compressor.kernels.compact import compact_many
from compressor.model.source import Source


def channels_of(units: list[int], width: int) -> torch.Tensor:
    """The channels that units of `width` channels own, in order."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def cut_block(
    weights: dict[str, torch.Tensor],
    checkpoint: Source,
    kept: Mapping[str, Sequence[int]],
    changed: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one block with the kept units only; those in `changed` replace the cut ones."""
    sizes = checkpoint.channel_sizes
    owned = [
        (part, group)
        for group, slices in checkpoint.family.groups().items()
        for part in slices
        if part.tensor in weights
    ]
    sources = [weights[part.tensor] for part, _ in owned]
    channels = [
        part.channels(kept[group], source.shape[part.axis] // part.size(sizes), sizes).to(
            source.device
        )
        for source, (part, group) in zip(sources, owned, strict=True)
    ]
    rows, columns = (
        [c if part.axis == axis else None for c, (part, _) in zip(channels, owned, strict=True)]
        for axis in (0, 1)
    )
    result = dict(weights)
    for tensor, (part, _) in zip(compact_many(sources, rows, columns), owned, strict=True):
        result[part.tensor] = tensor
    return result | (changed or {})
