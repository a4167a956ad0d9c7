"""Applying a plan: gathering the kept rows and columns of a block into smaller dense tensors."""

import torch

from compressor.checkpoint import Checkpoint
from compressor.kernels.compact import compact_many
from compressor.plan import Plan


def channels_of(units: list[int], width: int) -> torch.Tensor:
    """The channels that units of `width` channels own, in order."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def cut_block(
    weights: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    kept: dict[str, list[int]],
    padded_to: dict[str, int] | None = None,
    changed: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one block with the kept units only; those in `changed` replace the cut ones.

    With `padded_to` (units per group) the result is filled with zeros to that many units, which
    computes the same: the `padded` layout.
    """
    owned = [
        (part, group, checkpoint.channels_of_unit(group, part))
        for group, slices in checkpoint.family.groups().items()
        for part in slices
        if part.tensor in weights
    ]
    sources = [weights[part.tensor] for part, _, _ in owned]
    channels = [
        channels_of(kept[group], width).to(source.device)
        for source, (_, group, width) in zip(sources, owned, strict=True)
    ]
    rows, columns = (
        [c if part.axis == axis else None for c, (part, _, _) in zip(channels, owned, strict=True)]
        for axis in (0, 1)
    )
    result = dict(weights)
    for tensor, (part, _, _) in zip(compact_many(sources, rows, columns), owned, strict=True):
        result[part.tensor] = tensor
    result |= changed or {}
    if padded_to is not None:
        for part, group, width in owned:
            whole = padded_to[group] * width
            result[part.tensor] = filled(result[part.tensor], part.axis, whole)
    return result


def filled(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The tensor with zeros behind it, up to `size` along the axis."""
    shape = [size - n if a == axis else n for a, n in enumerate(tensor.shape)]
    return torch.cat((tensor, tensor.new_zeros(shape)), axis)


def widest(plan: Plan) -> dict[str, int]:
    """The largest number of units of each group in any block."""
    widths = plan.widths()
    return {group: max(w[group] for w in widths) for group in widths[0]}
