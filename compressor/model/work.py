"""What a model computes and moves: exact counts, from its widths alone.

One step adds T tokens to each of B sequences, the last of them at position C. Decoding is T = 1, the
prefill of a prompt T = C. Per block, with the widths of `BlockWidths` and e bytes an element:

    FLOPs    2 B T weights + 4 B query S      S = sum over the T tokens of min(position, window)
    bytes    e vectors + weight bytes                               read once a step, whatever B and T
           + e B 2 key_value (R + T)                                cache: read R positions, write T
           + 4 B 2 state                                            of linear attention, in float32
           + e B T (4 hidden + 4 query + 2 key_value + (ffn_inputs + 1) ffn)       inputs and outputs

A multiplication and an addition are two FLOPs; only matrix products count (norms, rotary embedding,
softmax and activations do not). S is the causal half of attention, what a kernel that skips masked
tiles computes: T (T + 1) / 2 in a prefill without window, where counters of dense products see T^2.
R = min(C, window + T - 1) positions are seen by any of the tokens: all T in a prefill. Every product
reads its input and writes its output once; what lies between two products is taken as fused.

The embedding is a look-up: no FLOPs, T rows. The head multiplies the last token of each sequence, as
generation does: 2 B vocabulary hidden FLOPs, and its matrix is read whole, tied or not; a tied one is
held once. Everything is dense: a zero is stored, read and multiplied like any number, so sparsity
without smaller tensors changes nothing here.

Of a mixture of experts a token is multiplied with those it is sent to, and with what all tokens pass; a
step reads as many experts as it has tokens for, if no two are sent to the same. What lies between the
products of shared experts is left out.

Linear attention has no cache that grows, but a `state`, in float32; a token asks it, adds to it and
reads it: three products with it, as in the recurrent form (a prefill in chunks takes others). What lies
between its projections is left out of the bytes, and so are the last tokens that its convolution keeps.

Latent attention keeps a vector of a token in the place of its keys and values, whose `latent` numbers
count as those do, and multiplies a token with every position in `pairs` products. That it makes keys and
values of what it has kept again in every step is left out, as kernels fold that into the queries.

A weight takes e bytes; of quantised matrices the bytes are those of the format
(`Packing.weight_bytes`), read as they are stored: fused kernels do so, transformers, which unpacks all
weights before its first step, does not.
"""

from dataclasses import dataclass
from typing import NamedTuple

from compressor.config.packing import Packing
from compressor.model.widths import BlockWidths, ModelWidths

STATE_BYTES = 4  # of a number of it, whatever weights are


@dataclass(frozen=True)
class Step:
    """`batch` sequences take `tokens` more tokens each, up to position `context`."""

    batch: int
    tokens: int
    context: int


class Work(NamedTuple):
    """FLOPs and bytes that some step of some part takes."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """One block, or what lies before or after the blocks (`widths` None), and its work.

    kv_bytes_per_token: cache of one token of one sequence. kv_bytes: of the whole batch at the
    context, with the states of linear attention.
    """

    name: str
    widths: BlockWidths | None
    parameters: int
    bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    decode: Work
    prefill: Work


def parts(model: ModelWidths, batch: int, context: int) -> list[Part]:
    """Embedding, blocks and head, in order."""
    size = model.dtype.itemsize
    steps = Step(batch, 1, context), Step(batch, context, context)
    embedded = model.vocabulary * model.hidden + model.positions
    looked_up = (Work(0, 2 * size * batch * s.tokens * model.hidden) for s in steps)
    body = [Part("embedding", None, embedded, size * embedded, 0, 0, *looked_up)]
    for index, block in enumerate(model.blocks):
        parameters = block.weights + block.vectors
        body.append(
            Part(
                str(index),
                block,
                parameters,
                weight_bytes(block, size, model.packing) + size * block.vectors,
                kv_bytes_per_token(block, size),
                batch * kept_bytes(block, steps[0], size),
                *(Work(flops(block, s), moved(block, s, size, model.packing)) for s in steps),
            )
        )
    matrix = model.vocabulary * model.hidden
    parameters = model.vectors + (0 if model.tied else matrix)
    read = size * (matrix + model.vectors + batch * (model.hidden + model.vocabulary))
    last = Work(2 * batch * matrix, read)
    return [*body, Part("head", None, parameters, size * parameters, 0, 0, last, last)]


def flops(block: BlockWidths, step: Step) -> int:
    products = 2 * step.tokens * (block.active + 3 * block.state)
    each = 4 * block.query + 2 * block.pairs
    return step.batch * (products + each * attended(step, block.window))


def attended(step: Step, window: int | None) -> int:
    """S: pairs of a new token and a position it attends to, of one sequence."""

    def up_to(position: int) -> int:
        full = min(position, window or position)
        return full * (full + 1) // 2 + (position - full) * full

    return up_to(step.context) - up_to(step.context - step.tokens)


def seen(block: BlockWidths, step: Step) -> int:
    """R: positions of one sequence's cache that the step reads, the new ones included."""
    return min(step.context, (block.window or step.context) + step.tokens - 1)


def moved(block: BlockWidths, step: Step, size: int, packing: Packing | None = None) -> int:
    """Bytes between memory and processor, `size` bytes an element; weights perhaps packed."""
    cache = (2 * block.key_value + block.latent) * (seen(block, step) + step.tokens)
    ends = 4 * block.hidden + 4 * block.query + 2 * block.key_value
    ends += (block.ffn_inputs + 1) * block.ffn * (block.experts.per_token if block.experts else 1)
    others = size * (block.vectors + step.batch * (cache + step.tokens * ends))
    others += 2 * step.batch * STATE_BYTES * block.state
    return weight_bytes(block, size, packing) - size * unread(block, step) + others


def unread(block: BlockWidths, step: Step) -> int:
    """Parameters of the experts that no token of a step can reach, if all reach different ones."""
    if block.experts is None:
        return 0
    reached = step.batch * step.tokens * block.experts.per_token
    return max(0, block.experts.count - reached) * block.an_ffn


def weight_bytes(block: BlockWidths, size: int, packing: Packing | None) -> int:
    """What the matrices of a block take, with `size` bytes an element of them or of their scales."""
    if packing is None:
        return size * block.weights
    return sum(packing.weight_bytes(rows, columns, size) for rows, columns in block.matrices)


def kept_bytes(block: BlockWidths, step: Step, size: int) -> int:
    """What is kept of one sequence: keys and values, or the state of linear attention."""
    return seen(block, step) * kv_bytes_per_token(block, size) + STATE_BYTES * block.state


def kv_bytes_per_token(block: BlockWidths, size: int) -> int:
    return (2 * block.key_value + block.latent) * size
