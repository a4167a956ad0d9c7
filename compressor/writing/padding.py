"""The `padded` layout: blocks filled with zeros up to the widest of them."""

from dataclasses import dataclass

import torch

from compressor.model.source import Source
from compressor.planning.plan import Plan


@dataclass(frozen=True)
class Padding:
    """How many units of each group a padded block has, and where among them the kept ones are."""

    units: dict[str, int]
    places: dict[str, list[int] | range]


def paddings(plan: Plan, checkpoint: Source) -> list[Padding]:
    """The padding of every block: behind the kept units, as many as the widest block needs.

    Where the class of a model knows one width alone, up to that. A head with a slope of its own stands
    where it always stood.
    """
    family, units = checkpoint.family, plan.widest()
    if family.heads_fixed:
        units["attention"] = checkpoint.heads
    if family.ffn_fixed:
        units["ffn"] = checkpoint.config[family.ffn_width_key]
    found = []
    for left, kept in zip(heads_left(plan, checkpoint), plan.blocks, strict=True):
        places = {group: range(len(own)) for group, own in kept.items()}
        found.append(Padding(units, places | ({"attention": left} if family.alibi else {})))
    return found


def heads_left(plan: Plan, checkpoint: Source) -> list[list[int]]:
    """Which of the heads that the config counts every block keeps, of one query a KV head."""
    return [
        [heads[unit] for unit in kept["attention"]]
        for heads, kept in zip(checkpoint.heads_left, plan.blocks, strict=True)
    ]


def padded_block(
    block: dict[str, torch.Tensor], checkpoint: Source, padding: Padding
) -> dict[str, torch.Tensor]:
    """A cut block filled with zeros, which computes the same."""
    found, sizes = dict(block), checkpoint.channel_sizes
    for group, slices in checkpoint.family.groups().items():
        units = padding.units[group]
        for part in (each for each in slices if each.tensor in block):
            places = part.channels(padding.places[group], units, sizes)
            width = units * part.size(sizes)
            found[part.tensor] = placed(block[part.tensor], part.axis, places, width)
    return found


def placed(tensor: torch.Tensor, axis: int, channels: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros, `size` along the axis, with the tensor's channels at these places."""
    shape = [size if a == axis else n for a, n in enumerate(tensor.shape)]
    return tensor.new_zeros(shape).index_copy_(axis, channels.to(tensor.device), tensor)
