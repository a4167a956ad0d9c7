"""The widths of a model, block by block, as the shapes of its tensors say them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from compressor.config.packing import Packing
from compressor.errors import InputError
from compressor.model.families import Family
from compressor.model.source import Source


@dataclass(frozen=True)
class Mixture:
    """The experts of a block: how many there are, how many a token passes, and the parameters of the
    matrices that all tokens pass beside them (router, shared experts).
    """

    count: int
    per_token: int
    others: int


@dataclass(frozen=True)
class BlockWidths:
    """One block: channels that each of its matrices has beside the `hidden` ones.

    query: heads x head_dim. key_value: KV heads x head_dim. ffn: channels of the FFN, or of one of its
    `experts`, made by `ffn_inputs` matrices [ffn, hidden] (two in a gated FFN); `query_inputs` are those
    of queries (two where heads are gated). vectors: parameters of biases and norms. window: positions
    that a token attends to, itself included; None is all before it. whole: parameters of the matrices
    of a group that is of another kind in this block; state: numbers that it keeps of a sequence. latent:
    those that it keeps of a token, beside keys and values; pairs: products of a token with each position
    that it attends to, beside those of `query`.
    """

    hidden: int
    query: int
    key_value: int
    head_dim: int
    ffn: int
    ffn_inputs: int
    vectors: int = 0
    window: int | None = None
    experts: Mixture | None = None
    query_inputs: int = 1
    whole: int = 0
    state: int = 0
    latent: int = 0
    pairs: int = 0

    @property
    def heads(self) -> int:
        return self.query // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.key_value // self.head_dim

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes [out, in] of q, k, v, o and the FFN's, or those of one expert."""
        inward = [*[self.query] * self.query_inputs, self.key_value, self.key_value]
        inward += [self.ffn] * self.ffn_inputs
        outward = [self.query, self.ffn]
        return [(w, self.hidden) for w in inward] + [(self.hidden, w) for w in outward]

    @property
    def weights(self) -> int:
        """Parameters of all matrices."""
        more = self.experts.count - 1 if self.experts else 0
        return self._once + more * self.an_ffn

    @property
    def active(self) -> int:
        """Those that one token is multiplied with."""
        more = self.experts.per_token - 1 if self.experts else 0
        return self._once + more * self.an_ffn

    @property
    def an_ffn(self) -> int:
        """Those of the FFN, or of one expert."""
        return (self.ffn_inputs + 1) * self.ffn * self.hidden

    @property
    def units(self) -> int:
        """What the config counts of the FFN: channels, or experts."""
        return self.experts.count if self.experts else self.ffn

    @property
    def _once(self) -> int:
        others = self.whole + (self.experts.others if self.experts else 0)
        return sum(rows * columns for rows, columns in self.matrices) + others


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
            checkpoint.block_entries(i),
            table,
            checkpoint.head_dim,
            window,
            checkpoint.config,
        )
        for i, (window, table) in enumerate(
            zip(sliding_windows(checkpoint), checkpoint.families, strict=True)
        )
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
    tensors: Mapping,
    family: Family,
    head_dim: int,
    window: int | None = None,
    config: Mapping = MappingProxyType({}),
) -> BlockWidths:
    """Widths of one block from the header entries of its tensors, by their name inside it.

    family: the table of the block. The input projections of attention have `query + 2 key_value`
    channels together, or `2 query` with gates, fused or not, and those of the FFN `ffn_inputs` times as
    many as its output projection reads. `InputError` if the block lacks matrices of the table, or has
    others. config: says of a mixture how many experts a token passes.
    """
    if (out := family.output("attention")) not in tensors:
        raise InputError(f"A block lacks the matrix {out}.")
    hidden, kept_whole = tensors[out].shape[0], whole_matrices(tensors, family)
    channels = {"attention": (0, 0), "ffn": (0, 0)}
    for group, slices in family.groups().items():
        if group == "ffn" and family.experts:
            continue
        matrices = []
        for part in slices:
            shape = tensors[part.tensor].shape if part.tensor in tensors else []
            if len(shape) == 2:
                matrices.append((shape, part.axis))
            elif not part.optional:
                raise InputError(f"A block lacks the matrix {part.tensor}.")
        *inputs, (shape, axis) = matrices
        channels[group] = shape[axis], sum(shape[axis] for shape, axis in inputs)
    query, query_key_value = channels["attention"]
    mixture = None
    if family.experts:
        per_token = config.get(family.experts.per_token) or 1
        mixture, ffn = mixture_of(tensors, family, per_token, kept_whole)
        ffn_inputs = 2 * ffn
    else:
        ffn, ffn_inputs = channels["ffn"]
    sizes = [(len(t.shape), t.numel) for t in tensors.values()]
    latent, pairs = family.latent(config) if family.latent else (0, 0)
    query_inputs = 2 if any("g" in part.owns for part in family.attention) else 1
    widths = BlockWidths(
        hidden=hidden,
        query=query,
        key_value=(query_key_value - query_inputs * query) // 2,
        head_dim=head_dim,
        ffn=ffn,
        ffn_inputs=ffn_inputs // max(ffn, 1),
        vectors=sum(numel for axes, numel in sizes if axes == 1),
        window=window,
        experts=mixture,
        query_inputs=query_inputs,
        whole=sum(tensors[name].numel for name in kept_whole),
        state=family.state(config) if "attention" in family.whole else 0,
        latent=latent,
        pairs=pairs,
    )
    matrices = sum(numel for axes, numel in sizes if axes > 1)
    if matrices != widths.weights:
        raise InputError(
            f"The matrices of a block hold {matrices:,} parameters, but its {family.model_type} "
            f"projections {widths.weights:,}: it has other matrices, or of other shapes."
        )
    return widths


def whole_matrices(tensors: Mapping, family: Family) -> set[str]:
    """The names of the matrices of the groups that a block of another kind has no units of."""
    modules = tuple(family.output(group).partition(".")[0] + "." for group in family.whole)
    return {name for name, t in tensors.items() if len(t.shape) > 1 and name.startswith(modules)}


def mixture_of(
    tensors: Mapping, family: Family, per_token: int, kept_whole: set[str]
) -> tuple[Mixture, int]:
    """The experts of a block, and the channels of each; kept_whole: matrices of no part of it."""
    if missing := [part.tensor for part in family.ffn if part.tensor not in tensors]:
        raise InputError(f"A block lacks the matrix {missing[0]}.")
    count, _, channels = tensors[family.experts.down].shape
    owned = {part.tensor for part in family.attention} | {*family.experts.parts} | kept_whole
    others = sum(t.numel for n, t in tensors.items() if len(t.shape) > 1 and n not in owned)
    return Mixture(count, per_token, others), channels


def sliding_windows(checkpoint: Source) -> list[int | None]:
    """The window of every block, as transformers' own cache sees it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=checkpoint.model_config())
    return [getattr(layer, "sliding_window", None) for layer in cache.layers]
