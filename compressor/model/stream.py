"""The stream: a model run block by block, with the weights of one block in memory.

The blocks, the embedding and the head are transformers' own modules on the meta device; weights
are assigned to one block, used for every batch, and dropped. What a block is called with (masks,
rotary embeddings, sliding windows) is recorded from the model's own forward, in which the blocks
are replaced by recorders; the head is that same forward with the blocks replaced by their result.
So a stream computes the very numbers of the ordinary model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NoReturn, cast

import torch
from accelerate import init_empty_weights
from torch import nn

from compressor.errors import InputError
from compressor.model.activations import Activations, states_of
from compressor.model.finite import Levels, check_block
from compressor.model.float8 import round_inputs
from compressor.model.memory import trim_heap
from compressor.model.modules import head_name, loaded, make_linear, move_buffers, replaced_forward
from compressor.model.pauses import Pauses
from compressor.model.per_layer import model_of
from compressor.model.ranks import ALONE, Alone
from compressor.model.source import Source
from compressor.model.staging import fetched_ahead, staged
from compressor.text.tokens import BATCH_TOKENS

LOGITS = 1 << 22  # at once: 16 MB in float32, of which some sixteen copies are made
FEWEST = 32  # tokens whose logits are made at once: the head's weight is read again for every part

# visit(index, layer, forward), as `BlockStream.run` says.
Visit = Callable[[int, nn.Module, Callable[[], Iterator[int]]], None]


def logits_rows(vocabulary: int) -> int:
    """Of how many tokens the logits are made at once."""
    return max(FEWEST, LOGITS // vocabulary)


class BlockStream:
    """Runs a checkpoint on batches of token ids [sequences, tokens], padded on the right.

    dtype: what weights and activations are computed in (the checkpoint's own by default).
    place: where activations are kept, as `Activations` has it. `batch_tokens`: how many tokens those
    who pass a text through it give it at once.
    """

    def __init__(
        self,
        checkpoint: Source,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        place: Path | torch.device | None = None,
    ):
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.dtype = dtype or checkpoint.dtype
        self.place = place
        self.batch_tokens = BATCH_TOKENS
        self.ranks: Alone = ALONE
        config = checkpoint.model_config()
        # Some classes draw numbers where they are made.
        with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
            self.model = make_linear(model_of(config, checkpoint.family, self.dtype))
        self.model.eval()
        move_buffers(self.model, self.device)
        self.layers = cast(nn.ModuleList, self.model.get_submodule(checkpoint.family.layers))
        if checkpoint.packing and checkpoint.packing.known.rounds_inputs:
            round_inputs(self.layers, checkpoint.family.projections())

    @cached_property
    def whole(self) -> "BlockStream":
        """The stream of the whole source, where this one has a part of its blocks; else itself."""
        whole = self.checkpoint.whole
        return self if whole is self.checkpoint else self.like(whole)

    def like(self, source: Source, dtype: torch.dtype | None = None) -> "BlockStream":
        """A stream of another source that runs as this one does."""
        stream = BlockStream(source, self.device, dtype or self.dtype, self.place)
        stream.batch_tokens = self.batch_tokens
        return stream

    def without(self, part: Source) -> "BlockStream":
        """The stream of a source that has lost some of this one's blocks."""
        stream = self.like(part)
        stream.whole = self
        return stream

    def shared(self, ranks: Alone) -> "BlockStream":
        """The same for passes that these ranks make together; what is made `like` it runs alone."""
        if ranks is self.ranks:
            return self
        stream = copy(self)
        stream.__dict__.pop("whole", None)
        stream.ranks = ranks
        return stream

    def in_float32(self) -> "BlockStream":
        """The same model computed in float32, for what is below the rounding of half precision."""
        return self.like(self.checkpoint, torch.float32)

    # -- weights ----------------------------------------------------------------------------------

    def cast(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        of = self.checkpoint.family.dtype_of
        return {n: t.to(device=self.device, dtype=of(n, self.dtype)) for n, t in tensors.items()}

    @contextmanager
    def outer(self, head: bool):
        """Everything but the blocks: embedding and norms, and the head if asked for."""
        family = self.checkpoint.family
        names = [n for n in self.checkpoint.outer_tensors() if head or n != family.head]
        tensors = self.cast(self.checkpoint.read(names))
        if head and self.checkpoint.tied:
            tensors[family.head] = tensors[family.embedding]
        renamed = {family.head: head_name(self.model)}
        with ExitStack() as stack:
            for name, tensor in tensors.items():
                module, _, leaf = renamed.get(name, name).rpartition(".")
                owner = self.model.get_submodule(module)
                stack.enter_context(loaded(owner, {leaf: tensor}, strict=False))
            yield self.model

    # -- running ----------------------------------------------------------------------------------

    @torch.no_grad()
    def record(self, batches: list[torch.Tensor]) -> tuple[Activations, list[list[tuple]]]:
        """Inputs of the first block, and what each block is called with: calls[batch][block]."""
        states, calls = Activations(self.place), []
        with self.outer(head=False) as model:
            for i, batch in enumerate(batches):
                seen: list[tuple] = []

                def recorder(_, hidden, *args, seen=seen, **call):
                    seen.append((hidden, args, call))
                    return self.as_returned(hidden)

                with replaced_forward(self.layers, recorder):
                    model.base_model(input_ids=batch.to(self.device), use_cache=False)
                states.put(i, seen[0][0])
                calls.append([(args, call) for _, args, call in seen])
        return states, calls

    @torch.no_grad()
    def run(
        self,
        batches: list[torch.Tensor],
        visit: Visit | None = None,
        kept: list[tuple] | None = None,
        pauses: Pauses | None = None,
        blocks: int | None = None,
    ) -> Activations:
        """Feed all batches through all blocks; returns the hidden states after the last one.

        visit(index, layer, forward), if any, is called once a block with its weights in place;
        forward() is an iterator that runs the block on one batch after the other and yields each
        batch's index, so statistics can be taken by hooks. It may be iterated more than once: the
        last pass counts. With `kept`, what every block was called with is appended to it, not
        dropped: (its inputs, [(args, keywords) of each batch]). With `pauses` the pass begins where an
        interrupted one has come to: blocks before are not visited. blocks: the first so many alone.
        """
        states, calls = self.record(batches)
        first = 0
        if pauses is not None and (reached := pauses.restore(states)):
            first, _ = reached
        for index, weights in self.weights(range(first, blocks or self.checkpoint.blocks)):
            with loaded(self.layers[index], weights) as layer:
                del weights
                following = Activations(self.place)

                def forward(
                    layer=layer, index=index, states=states, out=following
                ) -> Iterator[int]:
                    levels: Levels[int] = Levels()
                    for i in range(len(batches)):
                        self.ranks.check()
                        args, call = calls[i][index]
                        hidden = states_of(layer(states.get(i, self.device), *args, **call))
                        levels.add(index, hidden)
                        out.put(i, hidden)
                        yield i
                    if levels.not_finite():
                        self.refuse(index)

                if visit is None:
                    for _ in forward():
                        pass
                else:
                    visit(index, layer, forward)
            if kept is None:
                states.discard()
            else:
                kept.append((states, [call[index] for call in calls]))
            states = following
            if pauses is not None:
                pauses.keep(index + 1, len(batches), states)
            trim_heap()
        return states

    def refuse(self, index: int) -> NoReturn:
        """What makes a block's activations overflow: its weights by name, or their size."""
        check_block(self.checkpoint, index, self.checkpoint.read_block(index))
        advice = (
            "its weights are too large" if self.dtype == torch.float32 else "try --dtype float32"
        )
        number, dtype = self.checkpoint.numbers[index], str(self.dtype).removeprefix("torch.")
        raise InputError(
            f"The activations that leave block {number} are not finite in {dtype}; {advice}."
        )

    def weights(
        self, blocks: Sequence[int] | None = None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Index and weights of these blocks (all) in order, the next one being fetched meanwhile."""
        blocks = range(self.checkpoint.blocks) if blocks is None else blocks
        if not blocks:
            return

        if self.device.type == "cuda":
            yield from staged(self.checkpoint, blocks, self.device, self.dtype)
            return

        def fetch(index: int) -> dict[str, torch.Tensor]:
            self.checkpoint.will_need_block(index)
            return self.cast(self.checkpoint.read_block(index))

        yield from fetched_ahead(blocks, fetch)

    def as_returned(self, hidden: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        """Hidden states as the model takes them from a block."""
        return (hidden,) if self.checkpoint.family.in_a_tuple else hidden

    def returning(self, hidden: torch.Tensor):
        """While open, every block gives the model these hidden states."""
        return replaced_forward(self.layers, lambda *_, **__: self.as_returned(hidden))

    def head(self, model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Logits [tokens, vocabulary] of rows [tokens, hidden] that leave the last block.

        model: what `outer(head=True)` yields; its own forward computes them.
        """
        rows = rows[:, None]  # each at the first position: there may be fewer positions than rows
        with self.returning(rows):
            logits = model(inputs_embeds=rows, use_cache=False).logits[:, 0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def logits(
        self,
        batches: list[torch.Tensor],
        states: Activations | None = None,
        pauses: Pauses | None = None,
    ) -> Iterator[torch.Tensor]:
        """Logits [sequences, tokens, vocabulary] of every batch, in order, on the device.

        states: what left the last block, where that is known already. pauses: as `run` has them.
        """
        states = states or self.run(batches, pauses=pauses)
        with self.outer(head=True) as model:
            for i, batch in enumerate(batches):
                final = states.get(i, self.device)
                with self.returning(final):
                    yield model(input_ids=batch.to(self.device), use_cache=False).logits
        states.discard()
