"""Applying a plan: gathering the kept rows and columns of a block into smaller dense tensors."""

from collections.abc import Mapping, Sequence

import torch

from compressor.kernels.compact import check_kept, compact_many
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
    """The tensors of one block with the kept units only; those in `changed` replace the cut ones.

    The lists are checked on the host, where they are made: on a GPU nothing here waits for it.
    """
    sizes = checkpoint.channel_sizes
    parts, sources, rows, columns = [], [], [], []
    for group, slices in checkpoint.family.groups().items():
        for part in slices if kept[group] else ():  # none of a group that is of another kind
            if part.tensor not in weights:
                continue
            source = part.matrix(weights[part.tensor])
            units = source.shape[part.axis] // part.size(sizes)
            channels = part.channels(kept[group], units, sizes)
            parts.append(part)
            sources.append(source)
            rows.append(channels if part.axis == 0 else None)
            columns.append(channels if part.axis == 1 else None)
    check_kept(sources, rows, columns)
    there = [
        [
            None if k is None else k.to(w.device, non_blocking=True)
            for w, k in zip(sources, lists, strict=True)
        ]
        for lists in (rows, columns)
    ]
    small = compact_many(sources, *there, check=False)
    cut = {
        part.tensor: part.unmatrix(left, weights[part.tensor])
        for part, left in zip(parts, small, strict=True)
    }
    return weights | cut | (changed or {})
