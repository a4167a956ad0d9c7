"""The `padded` layout: blocks filled with zeros up to the widest of them."""

import torch

from compressor.model.source import Source
from compressor.planning.plan import Plan

Places = dict[str, list[int] | range]  # of each group, where the kept units are among all


def padded_units(plan: Plan, checkpoint: Source) -> dict[str, int]:
    """How many units of each group every padded block has: as many as the widest block needs, or as the
    class of the model has, where it knows one width alone.
    """
    family, units = checkpoint.family, plan.widest()
    if family.heads_fixed:
        units["attention"] = checkpoint.kv_heads
    if family.ffn_fixed:
        units["ffn"] = checkpoint.config[family.ffn_width_key]
    return units


def padded_places(plan: Plan, checkpoint: Source) -> list[Places]:
    """Where the kept units of every block stand: first, but a head with a slope of its own stands where
    it always stood.
    """
    places: list[Places] = []
    for left, kept in zip(heads_left(plan, checkpoint), plan.blocks, strict=True):
        places.append({group: range(len(units)) for group, units in kept.items()})
        if checkpoint.family.alibi:
            places[-1]["attention"] = left
    return places


def heads_left(plan: Plan, checkpoint: Source) -> list[list[int]]:
    """Which of the heads that the config counts every block keeps, of one query a KV head."""
    return [
        [heads[unit] for unit in kept["attention"]]
        for heads, kept in zip(checkpoint.heads_left, plan.blocks, strict=True)
    ]


def padded_block(
    block: dict[str, torch.Tensor], checkpoint: Source, units: dict[str, int], places: Places
) -> dict[str, torch.Tensor]:
    """A cut block filled with zeros, which computes the same."""
    padded, sizes = dict(block), checkpoint.channel_sizes
    for group, slices in checkpoint.family.groups().items():
        for part in (each for each in slices if each.tensor in block):
            channels = part.channels(places[group], units[group], sizes)
            width = units[group] * part.size(sizes)
            padded[part.tensor] = placed(block[part.tensor], part.axis, channels, width)
    return padded


def placed(tensor: torch.Tensor, axis: int, channels: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros, `size` along the axis, with the tensor's channels at these places."""
    shape = [size if a == axis else n for a, n in enumerate(tensor.shape)]
    return tensor.new_zeros(shape).index_copy_(axis, channels.to(tensor.device), tensor)
