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
    result |= changed or {}
    if padded_to is not None:
        for part, group in owned:
            whole = padded_to[group]
            places = part.channels(range(len(kept[group])), whole, sizes)
            tensor = result[part.tensor]
            result[part.tensor] = placed(tensor, part.axis, places, whole * part.size(sizes))
    return result


def placed(tensor: torch.Tensor, axis: int, channels: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros, `size` along the axis, with the tensor's channels at these places."""
    shape = [size if a == axis else n for a, n in enumerate(tensor.shape)]
    return tensor.new_zeros(shape).index_copy_(axis, channels.to(tensor.device), tensor)


def widest(plan: Plan) -> dict[str, int]:
    """The largest number of units of each group in any block."""
    widths = plan.widths()
    return {group: max(w[group] for w in widths) for group in widths[0]}
