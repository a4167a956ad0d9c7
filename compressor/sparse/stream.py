"""The pass that makes a checkpoint sparse: block after block, on what the pruned blocks pass on.

One block's weights are in memory and the next one's are fetched meanwhile. What a method returns is
rounded to the source's dtype, written, and goes on to the next block as it is written.
"""

from collections.abc import Callable, Sequence

import torch

from compressor.blocks import Activations, BlockStream, loaded
from compressor.checkpoint import Checkpoint
from compressor.memory import trim_heap
from compressor.scoring import check_finite
from compressor.sparse.block import Block, projections, relative_error
from compressor.sparse.methods import METHODS, Recipe

Put = Callable[[str, torch.Tensor], None]


@torch.no_grad()
def sparsify(
    stream: BlockStream,
    sequences: Sequence[torch.Tensor],
    prompts: Sequence[torch.Tensor],
    recipe: Recipe,
    put: Put,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[dict], list[torch.Tensor]]:
    """Prune every block; put(name, tensor) receives each tensor of the result.

    sequences, prompts: token ids [tokens]; prompts are only carried along. Returns of each block its
    zeros by tensor (and, of BESA, the mean error of its output), and the logits [tokens, vocabulary]
    of each prompt.
    """
    checkpoint = stream.checkpoint
    for name in checkpoint.outer_tensors():
        tensor = checkpoint.read([name])[name]
        check_finite(name, tensor)
        put(name, tensor)
    batches = [ids[None] for ids in (*sequences, *prompts)]
    states, calls = stream.record(batches)
    dense = states if recipe.wants_dense_path else None
    blocks = []
    for index, weights in stream.weights():
        for name, tensor in weights.items():
            check_finite(checkpoint.block_name(index, name), tensor)
        readers = projections(checkpoint.family, weights)
        with loaded(stream.layers[index], weights) as layer:
            del weights
            called = [call[index] for call in calls]
            block = Block(index, layer, states, called, len(sequences), stream.device, readers)
            targets = Activations(stream.offload)
            if dense is not None:
                for i in range(block.count):
                    targets.put(i, block.run(i, inputs=dense))
            pruned = METHODS[recipe.method](block, recipe, targets)
            stored = as_stored(checkpoint, index, pruned, recipe.corrects)
            pruned = {name: stored[name].to(stream.device, stream.dtype) for name in pruned}
            following = Activations(stream.offload)
            errors = []
            for i in range(len(batches)):
                output = block.run(i, pruned)
                following.put(i, output)
                if recipe.method == "besa" and i < block.count:
                    errors.append(relative_error(output, targets.get(i, stream.device)).item())
        found = {"zeros": {name: int((stored[name] == 0).sum()) for name in pruned}}
        blocks.append(found | ({"error": sum(errors) / len(errors)} if errors else {}))
        for name, tensor in stored.items():
            put(checkpoint.block_name(index, name), tensor)
        states.discard()
        if dense is not None:
            dense.discard()
            dense = targets
        else:
            targets.discard()
        states = following
        trim_heap()
        progress(index + 1, checkpoint.blocks)
    last = Activations()
    for i in range(len(prompts)):
        last.put(i, states.get(len(sequences) + i, stream.device))
    states.discard()
    return blocks, [logits[0] for logits in stream.logits(batches[len(sequences) :], last)]


def as_stored(
    checkpoint: Checkpoint, index: int, pruned: dict[str, torch.Tensor], corrects: bool
) -> dict[str, torch.Tensor]:
    """All tensors of a block as they are written: in the source's dtype, its own bits where unchanged."""
    stored = checkpoint.read_block(index)
    for name, tensor in pruned.items():
        tensor = tensor.to("cpu")
        source = stored[name]
        stored[name] = tensor.to(source.dtype) if corrects else source.masked_fill(tensor == 0, 0)
    return stored
