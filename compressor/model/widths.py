"""The widths of a model, block by block, as the shapes of its tensors say them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from compressor.config.packing import Packing
from compressor.errors import InputError
from compressor.model.families import Family
from compressor.model.source import Source


@dataclass(frozen=True)
class BlockWidths:
    """One block: channels that each of its matrices has beside the `hidden` ones.

    query: heads x head_dim. key_value: KV heads x head_dim. ffn: channels of the FFN, made by
    `ffn_inputs` matrices [ffn, hidden] (two in a gated FFN). vectors: parameters of biases and
    norms. window: positions that a token attends to, itself included; None is all before it.
    """

    hidden: int
    query: int
    key_value: int
    head_dim: int
    ffn: int
    ffn_inputs: int
    vectors: int = 0
    window: int | None = None

    @property
    def heads(self) -> int:
        return self.query // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.key_value // self.head_dim

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes [out, in] of q, k, v, o and the FFN's."""
        inward = [self.query, self.key_value, self.key_value, *[self.ffn] * self.ffn_inputs]
        outward = [self.query, self.ffn]
        return [(w, self.hidden) for w in inward] + [(self.hidden, w) for w in outward]

    @property
    def weights(self) -> int:
        """Parameters of all matrices."""
        return sum(rows * columns for rows, columns in self.matrices)


@dataclass(frozen=True)
class ModelWidths:
    """A model: its blocks, and what surrounds them.

    vocabulary: rows of the embedding and of the head, which is the same matrix if `tied`.
    positions: parameters of other look-up tables. vectors: of norms and biases outside the blocks.
    packing: how the blocks' matrices are stored, where they are quantised.
    """

    blocks: tuple[BlockWidths, ...]
    dtype: torch.dtype
    vocabulary: int
    tied: bool
    positions: int = 0
    vectors: int = 0
    packing: Packing | None = None

    @property
    def hidden(self) -> int:
        return self.blocks[0].hidden


def model_widths(checkpoint: Source) -> ModelWidths:
    """Widths of a checkpoint, from its headers; only sliding windows come from its config."""
    family, tensors = checkpoint.family, checkpoint.tensors
    blocks = tuple(
        block_widths(
            {name: tensors[checkpoint.block_name(i, name)] for name in checkpoint.block_tensors(i)},
            family,
            checkpoint.head_dim,
            window,
        )
        for i, window in enumerate(sliding_windows(checkpoint))
    )
    others = [
        tensors[name]
        for name in checkpoint.outer_tensors()
        if name not in (family.embedding, family.head)
    ]
    return ModelWidths(
        blocks,
        checkpoint.dtype,
        vocabulary=tensors[family.embedding].shape[0],
        tied=checkpoint.tied,
        positions=sum(t.numel for t in others if len(t.shape) > 1),
        vectors=sum(t.numel for t in others if len(t.shape) == 1),
        packing=checkpoint.packing,
    )


def block_widths(
    tensors: Mapping, family: Family, head_dim: int, window: int | None = None
) -> BlockWidths:
    """Widths of one block from the header entries of its tensors, by their name inside it.

    The input projections of attention have `query + 2 key_value` channels together, fused or not,
    and those of the FFN `ffn_inputs` times as many as its output projection reads. `InputError` if
    the block lacks matrices of the family's table, or has others.
    """
    channels = {}
    for group, slices in family.groups().items():
        matrices = []
        for part in slices:
            shape = tensors[part.tensor].shape if part.tensor in tensors else []
            if len(shape) == 2:
                matrices.append((shape, part.axis))
            elif not part.optional:
                raise InputError(f"A block lacks the matrix {part.tensor}.")
        *inputs, (shape, axis) = matrices
        hidden = shape[1 - axis]
        channels[group] = shape[axis], sum(shape[axis] for shape, axis in inputs)
    query, query_key_value = channels["attention"]
    ffn, ffn_inputs = channels["ffn"]
    sizes = [(len(t.shape), t.numel) for t in tensors.values()]
    widths = BlockWidths(
        hidden=hidden,
        query=query,
        key_value=(query_key_value - query) // 2,
        head_dim=head_dim,
        ffn=ffn,
        ffn_inputs=ffn_inputs // max(ffn, 1),
        vectors=sum(numel for axes, numel in sizes if axes == 1),
        window=window,
    )
    matrices = sum(numel for axes, numel in sizes if axes > 1)
    if matrices != widths.weights:
        raise InputError(
            f"The matrices of a block hold {matrices:,} parameters, but its {family.model_type} "
            f"projections {widths.weights:,}: it has other matrices, or of other shapes."
        )
    return widths


def sliding_windows(checkpoint: Source) -> list[int | None]:
    """The window of every block, as transformers' own cache sees it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=checkpoint.model_config())
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]
