"""A source model as a plan and a repair would have it: units masked, what was refitted in its place."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from torch import nn

from compressor.config.layouts import PADDED
from compressor.errors import VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.digest import digest
from compressor.model.fewer_blocks import without
from compressor.model.fewer_channels import FewerChannels, narrower
from compressor.model.loading import blocks_of
from compressor.model.modules import assign, replaced_forward
from compressor.model.source import Source
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.plan import Plan
from compressor.verification.narrow import only_channels, widened
from compressor.writing.padding import padded_places, placed

CHANGED = ("repair", "folded")  # entries of a record that name tensors of blocks


@contextmanager
def masked_plan(model: nn.Module, checkpoint: Checkpoint, written: Checkpoint, record: dict):
    """While open, the model of a source computes what a checkpoint cut from it has to compute.

    record: the compression.json of what was written. What a repair or a fold changed is of that, in the
    places it was cut from, one block at a time. Blocks that were dropped pass the stream on. Channels of
    the stream that were cut carry nothing (`narrow.py`).
    """
    plan = Plan(record["plan"]["blocks"], record["plan"].get("about", {}))
    source = narrower(without(plan.seen(checkpoint), plan.dropped), plan.channels)
    changed = [entries for name in CHANGED if (entries := (record.get(name) or {}).get("blocks"))]
    stands = [{group: range(len(units)) for group, units in kept.items()} for kept in plan.blocks]
    if record.get("layout") == PADDED:
        stands = padded_places(plan, source)
    family = source.family
    layers = cast(nn.ModuleList, blocks_of(model, family))

    def pass_on(_, hidden: torch.Tensor, *args, **keywords):
        return (hidden,) if family.in_a_tuple else hidden

    with ExitStack() as changes:
        if isinstance(source, FewerChannels):
            told = record.get("hidden") or {}
            changes.enter_context(only_channels(model, source, written, told))
        changes.enter_context(replaced_forward([layers[b] for b in source.dropped], pass_on))
        for index, kept in enumerate(plan.blocks):
            layer = layers[source.numbers[index]]
            changes.enter_context(only_units(layer, BlockGeometry.of(source, index), kept))
            for told in (blocks[index] for blocks in changed if blocks[index]["tensors"]):
                tensors = partial(repaired, source, written, index, kept, stands[index], told)
                changes.enter_context(lent(layer, tensors))
        yield


@contextmanager
def lent(layer: nn.Module, tensors: Callable[[], dict[str, torch.Tensor]]):
    """While open, `layer` has the parameters that tensors() makes whenever it runs, and only then."""
    former = {}

    def take(*_) -> None:
        parameters = tensors()
        former.update({name: layer.get_parameter(name) for name in parameters})
        assign(layer, {n: tensor.to(former[n]) for n, tensor in parameters.items()})

    def give_back(*_) -> None:
        assign(layer, former)

    with layer.register_forward_pre_hook(take), layer.register_forward_hook(give_back):
        yield


def repaired(
    checkpoint: Source, written: Checkpoint, index: int, kept: dict, stands: dict, record: dict
) -> dict[str, torch.Tensor]:
    """The tensors of a block that `record` says a repair changed, as wide as the source's.

    stands: where among the units of the written block the kept ones are.
    """
    stored, joined = written.read_block(index), checkpoint.family.joined
    for name in joined.keys() - stored.keys():  # the nas layout has its parts
        stored[name] = torch.cat([stored[part] for part in joined[name]])
    tensors = {name: stored[name] for name in record["tensors"]}
    owned = {
        part.tensor: (part, group)
        for group, slices in checkpoint.family.groups().items()
        for part in slices
        if part.tensor in tensors
    }
    sizes = checkpoint.channel_sizes
    for name, (part, group) in owned.items():
        whole, matrix = tensors[name], part.matrix(tensors[name])
        units = matrix.shape[part.axis] // part.size(sizes)
        real = part.channels(stands[group], units, sizes)
        tensors[name] = part.unmatrix(matrix.index_select(part.axis, real), whole)
    if digest(tensors) != record["sha256"]:
        raise VerificationError(
            f"The repaired tensors of block {index} in {written.path} are not those that were made: "
            f"{', '.join(tensors)}."
        )
    for name, (part, group) in owned.items():
        units = checkpoint.block_units[index][group]
        places = part.channels(kept[group], units, sizes)
        wide = placed(part.matrix(tensors[name]), part.axis, places, units * part.size(sizes))
        tensors[name] = part.unmatrix(wide, tensors[name])
    if isinstance(checkpoint, FewerChannels):
        whole = partial(checkpoint.block_name, index)
        tensors = {name: widened(t, whole(name), checkpoint) for name, t in tensors.items()}
    return tensors
