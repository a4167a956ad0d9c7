"""Applying a plan: gathering the kept rows and columns of a block into smaller dense tensors."""

import torch

from compressor.checkpoint import Checkpoint
from compressor.plan import Plan


def channels_of(units: list[int], width: int) -> torch.Tensor:
    """The channels that units of `width` channels own, in order."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def cut_block(
    weights: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    kept: dict[str, list[int]],
    padded_to: dict[str, int] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one block with the kept units only.

    With `padded_to` (units per group) the result is filled with zeros to that many units, which
    computes the same: the `padded` layout.
    """
    result = dict(weights)
    for group, slices in checkpoint.family.groups().items():
        for part in slices:
            if part.tensor not in weights:
                continue
            weight = weights[part.tensor]
            width = weight.shape[part.axis] // checkpoint.units[group]
            smaller = weight.index_select(part.axis, channels_of(kept[group], width))
            if padded_to is not None:
                lacking = (padded_to[group] - len(kept[group])) * width
                shape = [lacking if a == part.axis else n for a, n in enumerate(smaller.shape)]
                smaller = torch.cat((smaller, smaller.new_zeros(shape)), part.axis)
            result[part.tensor] = smaller
    return result


def widest(plan: Plan) -> dict[str, int]:
    """The largest number of units of each group in any block."""
    widths = plan.widths()
    return {group: max(w[group] for w in widths) for group in widths[0]}
