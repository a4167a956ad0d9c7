"""Applying a plan: gathering the kept rows and columns of a block into smaller dense tensors."""

from dataclasses import dataclass

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
    padding: "Padding | None" = None,
    changed: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one block with the kept units only; those in `changed` replace the cut ones.

    With `padding` the result is filled with zeros, which computes the same: the `padded` layout.
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
    if padding is not None:
        for part, group in owned:
            whole = padding.units[group]
            places = part.channels(padding.places[group], whole, sizes)
            tensor = result[part.tensor]
            result[part.tensor] = placed(tensor, part.axis, places, whole * part.size(sizes))
    return result


@dataclass(frozen=True)
class Padding:
    """How many units of each group a padded block has, and where among them the kept ones are."""

    units: dict[str, int]
    places: dict[str, list[int] | range]


def paddings(plan: Plan, checkpoint: Checkpoint) -> list[Padding]:
    """The padding of every block: behind the kept units, as many as the widest block needs.

    Where the class of a model knows one width alone, up to that. A head with a slope of its own stands
    where it always stood.
    """
    family, units = checkpoint.family, widest(plan)
    if family.heads_fixed:
        units["attention"] = checkpoint.heads
    if family.ffn_fixed:
        units["ffn"] = checkpoint.config[family.ffn_width_key]
    found = []
    for left, kept in zip(heads_left(plan, checkpoint), plan.blocks, strict=True):
        places = {group: range(len(own)) for group, own in kept.items()}
        found.append(Padding(units, places | ({"attention": left} if family.alibi else {})))
    return found


def heads_left(plan: Plan, checkpoint: Checkpoint) -> list[list[int]]:
    """Which of the heads that the config counts every block keeps, of one query a KV head."""
    return [
        [heads[unit] for unit in kept["attention"]]
        for heads, kept in zip(checkpoint.heads_left, plan.blocks, strict=True)
    ]


def placed(tensor: torch.Tensor, axis: int, channels: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros, `size` along the axis, with the tensor's channels at these places."""
    shape = [size if a == axis else n for a, n in enumerate(tensor.shape)]
    return tensor.new_zeros(shape).index_copy_(axis, channels.to(tensor.device), tensor)


def widest(plan: Plan) -> dict[str, int]:
    """The largest number of units of each group in any block."""
    widths = plan.widths()
    return {group: max(w[group] for w in widths) for group in widths[0]}
