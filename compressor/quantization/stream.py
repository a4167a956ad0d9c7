"""The pass that quantises a checkpoint: block after block, one in memory.

A second, float32 stream carries prompts through the quantised blocks: what they compute is what the
written folder has to compute.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from compressor.blocks import BlockStream, loaded
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.memory import trim_heap
from compressor.quantization.packing import packed
from compressor.quantization.scheme import dequantized, integers, scales, stored_scales
from compressor.repair import digest
from compressor.scoring import check_finite


class Quantizing:
    """One quantisation of one dense checkpoint: iterate over `blocks()`, then read `record`, `logits`.

    prompts: token ids [tokens]. record[block]: the `sha256` of the packed tensors and the relative
    squared `error` of the weights, by projection.
    """

    def __init__(self, checkpoint: Checkpoint, group: int, prompts: Sequence[torch.Tensor] = ()):
        check_columns(checkpoint, group)
        self.checkpoint, self.group = checkpoint, group
        self.exact = BlockStream(checkpoint, dtype=torch.float32)
        self.prompts = [ids[None] for ids in prompts]
        self.record: list[dict] = []

    @torch.no_grad()
    def blocks(self) -> Iterator[dict[str, torch.Tensor]]:
        """Of every block in order all tensors to store, by their names inside it."""
        checkpoint, exact = self.checkpoint, self.exact
        self.states, calls = exact.record(self.prompts)
        matrices = projections(checkpoint)
        for index in range(checkpoint.blocks):
            weights = checkpoint.read_block(index)
            for name, tensor in weights.items():
                check_finite(checkpoint.block_name(index, name), tensor)
            found, errors = {}, {}
            for name in matrices:
                weight = weights[name]
                scale = stored_scales(scales(weight, self.group), weight.dtype)
                found |= packed(name, weight, scale, self.group)
                weights[name] = dequantized(integers(weight, scale), scale)
                errors[name] = relative(weights[name], weight)
            with loaded(exact.layers[index], exact.cast(weights)) as layer:
                for i, call in enumerate(calls):
                    args, keywords = call[index]
                    hidden = layer(self.states.get(i, exact.device), *args, **keywords)
                    self.states.put(i, hidden[0] if isinstance(hidden, tuple) else hidden)
            self.record.append({"sha256": digest(found), "error": errors})
            yield found | {n: t for n, t in weights.items() if n not in errors}
            trim_heap()

    def logits(self) -> list[torch.Tensor]:
        """float32 [tokens, vocabulary] of every prompt, when all blocks are done."""
        return [found[0] for found in self.exact.logits(self.prompts, self.states)]


def projections(checkpoint: Checkpoint) -> list[str]:
    """Names of the weights that are quantised, inside a block."""
    present = checkpoint.block_tensors(0)
    return [
        part.tensor
        for slices in checkpoint.family.groups().values()
        for part in slices
        if part.tensor in present
        and len(checkpoint.tensors[checkpoint.block_name(0, part.tensor)].shape) == 2
    ]


def check_columns(checkpoint: Checkpoint, group: int) -> None:
    """Refuse input channels that are not whole groups, by the tensor's name."""
    for name in projections(checkpoint):
        whole = checkpoint.block_name(0, name)
        columns = checkpoint.tensors[whole].shape[1]
        if columns % group:
            raise InputError(
                f"{whole} has {columns} input channels, which are not whole groups of "
                f"{group} (--quantize-group). {remedy(checkpoint, group)}"
            )


def remedy(checkpoint: Checkpoint, group: int) -> str:
    """Which groups every width of the model has, and whether a cut can make this one fit."""
    shapes = (
        checkpoint.tensors[checkpoint.block_name(0, n)].shape for n in projections(checkpoint)
    )
    common = math.gcd(*(columns for _, columns in shapes))
    advice = f"Groups of {common}, or of a divisor of it, fit all of this model's widths"
    width = checkpoint.units["ffn"]
    if checkpoint.hidden_size % group == 0 and group <= width:
        advice += (
            f"; or cut: with --keep or --keep-blocks, FFN widths become multiples of {group}, at "
            f"most {width // group * group} of {width}"
        )
    return advice + "."


def relative(changed: torch.Tensor, weight: torch.Tensor) -> float:
    """||W^ - W||^2 / ||W||^2, 0 for a weight of zeros."""
    weight = weight.float()
    energy = weight.square().sum()
    return ((changed.float() - weight).square().sum() / energy).item() if energy else 0.0
