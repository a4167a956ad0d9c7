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
    names, rows, columns = [], [], []
    for group, slices in checkpoint.family.groups().items():
        for part in slices:
            if part.tensor not in weights:
                continue
            source = weights[part.tensor]
            units = source.shape[part.axis] // part.size(sizes)
            channels = part.channels(kept[group], units, sizes)
            names.append(part.tensor)
            rows.append(channels if part.axis == 0 else None)
            columns.append(channels if part.axis == 1 else None)
    sources = [in_rows(weights[name]) for name in names]
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
        name: kept.unflatten(1, weights[name].shape[1:]) if weights[name].ndim > 2 else kept
        for name, kept in zip(names, small, strict=True)
    }
    return weights | cut | (changed or {})


def in_rows(weight: torch.Tensor) -> torch.Tensor:
    """A stack of experts as a matrix that has each in a row; a matrix or a vector as it is."""
    return weight.flatten(1) if weight.ndim > 2 else weight
