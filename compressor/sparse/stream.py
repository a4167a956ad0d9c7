"""The pass that makes a checkpoint sparse: block after block, on what the pruned blocks pass on.

One block's weights are in memory and the next one's are fetched meanwhile. What a method returns is
rounded to the source's dtype, and goes on to the next block as it is written.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from compressor.config.sparse import Recipe
from compressor.model.activations import Activations
from compressor.model.beside import Beside
from compressor.model.block import Block, relative_error
from compressor.model.digest import digest
from compressor.model.finite import check_block, check_outer
from compressor.model.memory import trim_heap
from compressor.model.modules import loaded
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.model.stream import BlockStream
from compressor.quantization.scheme import dequantized, integers, stored_scales
from compressor.sparse.methods import METHODS, UNROUNDED
from compressor.writing.packing import SCALE


class Sparsification:
    """One pruning of one checkpoint: iterate over `blocks()`, then read `record` and `logits()`.

    sequences: token ids [tokens] to calibrate on, which ranks share out. prompts: the same, only
    carried along, so that logits() are what the pruned blocks in memory computed. saved: a folder
    where finished blocks are kept, and taken from if they are there.

    record[block]: the `zeros` of each projection's weight, the `source_zeros` that all of them had
    before, the `sha256` of all of them together, and with BESA the mean `error` of the block's output
    (else None).
    """

    def __init__(
        self,
        stream: BlockStream,
        sequences: Sequence[torch.Tensor],
        recipe: Recipe,
        prompts: Sequence[torch.Tensor] = (),
        saved: Path | None = None,
    ):
        self.stream, self.recipe, self.saved = stream, recipe, saved
        mine = stream.ranks.share(list(sequences))
        self.count = len(mine)
        self.batches = [ids[None] for ids in (*mine, *prompts)]
        self.record: list[dict] = []
        self.states: Activations | None = None  # what left the last finished block

    def blocks(self) -> Iterator[dict[str, torch.Tensor]]:
        """Of every block in order its projections' weights, as they are to be stored."""
        with Beside() as beside:
            yield from self.pruned(beside)

    @torch.no_grad()
    def pruned(self, beside: Beside) -> Iterator[dict[str, torch.Tensor]]:
        """As `blocks`; what they are kept by is made beside."""
        stream, checkpoint, ranks = self.stream, self.stream.checkpoint, self.stream.ranks
        check_outer(checkpoint)
        self.states, calls = stream.record(self.batches)
        dense = self.states if self.recipe.wants_dense_path else None
        for index, weights in stream.weights():
            check_block(checkpoint, index, weights)
            readers = checkpoint.family.readers()
            with loaded(stream.layers[index], weights) as layer:
                del weights
                called = [call[index] for call in calls]
                given = (self.states, called, self.count, stream.device, readers, ranks)
                block = Block(index, layer, *given)
                source_zeros = sum(int((w == 0).sum()) for w in block.weights.values())
                targets = Activations(stream.place)
                if dense is not None and dense is not self.states:
                    outputs(block, dense, targets)
                stored, saved = ranks.told(partial(finished_block, self.saved, index)), None
                if stored is None:
                    saved = self.saved
                    pruned = METHODS[self.recipe.method](block, self.recipe, targets)
                    source, corrects = checkpoint.read_block(index), self.recipe.corrects
                    stored = ranks.told(partial(as_stored, source, pruned, corrects))
                    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
                elif self.recipe.learns and targets.empty:
                    outputs(block, self.states, targets)
                beside.do(keep_block, saved, index, stored)
                stored = {name: stored[name] for name in block.names}
                following, error = self.passed_on(block, stored, targets)
            self.record.append({"source_zeros": source_zeros, "error": error})
            beside.do(tell, self.record[index], stored)
            self.states.discard()
            (targets if dense is None else dense).discard()
            dense = dense and targets
            self.states = following
            yield stored
            trim_heap()

    def passed_on(
        self, block: Block, stored: dict[str, torch.Tensor], targets: Activations
    ) -> tuple[Activations, float | None]:
        """What a block passes on with its new weights, and BESA's mean error of it."""
        weights, device = self.stream.cast(stored), self.stream.device
        following, errors = Activations(self.stream.place), []
        for i in range(len(self.batches)):
            output = block.run(i, weights)
            following.put(i, output)
            if self.recipe.learns and i < self.count:
                errors.append(relative_error(output, targets.get(i, device)))
        if not self.recipe.learns:
            return following, None
        error = torch.stack(errors).sum(dtype=torch.float64).cpu()
        self.stream.ranks.all_sum(error)
        return following, error.item() / sum(self.stream.ranks.counts(self.count))

    def unrounded(self) -> Iterator[dict[str, torch.Tensor]]:
        """What `blocks` gave, but for the rounding to 4 bits, from where finished blocks are kept."""
        for index in range(len(self.record)):
            kept = finished_block(self.saved, index)
            yield {n.removesuffix(UNROUNDED): t for n, t in kept.items() if n.endswith(UNROUNDED)}

    def logits(self) -> list[torch.Tensor]:
        """[tokens, vocabulary] of every prompt, when all blocks are done."""
        prompts = self.batches[self.count :]
        last = Activations()
        for i in range(len(prompts)):
            last.put(i, self.states.get(self.count + i, self.stream.device))
        return [logits[0] for logits in self.stream.logits(prompts, last)]


def tell(entry: dict, stored: dict[str, torch.Tensor]) -> None:
    """Add to a block's entry of the record what its weights say."""
    entry["zeros"] = {name: int((weight == 0).sum()) for name, weight in stored.items()}
    entry["sha256"] = digest(stored)


def outputs(block: Block, inputs: Activations, targets: Activations) -> None:
    """What the dense block makes of the calibration sequences."""
    for i in range(block.count):
        targets.put(i, block.run(i, inputs=inputs))


def as_stored(
    sources: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor], corrects: bool
) -> dict[str, torch.Tensor]:
    """The pruned weights in the sources' dtype; without correction the sources' bits or 0.

    Quantised ones by their scales as those are stored, which come with them, and so does what was not
    rounded.
    """
    stored = {}
    for name in pruned.keys() & sources.keys():
        source, tensor = sources[name], pruned[name].cpu()
        if (scale := pruned.get(name + SCALE)) is not None:
            rounded = stored_scales(scale.cpu(), source.dtype)
            stored[name] = dequantized(integers(tensor, scale.cpu()), rounded)
            stored[name + SCALE] = rounded
            stored[name + UNROUNDED] = pruned[name + UNROUNDED].cpu().to(source.dtype)
            continue
        stored[name] = tensor.to(source.dtype) if corrects else source.masked_fill(tensor == 0, 0)
    return stored
