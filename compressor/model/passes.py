"""One pass over the blocks that finds something out of each, and may be interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.model.pauses import Pauses
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.model.stream import BlockStream

Block = dict[str, torch.Tensor]
Later = Callable[[], Block]
Progress = Callable[[int, int], None]
Find = Callable[[int, torch.nn.Module, Callable], Block | Later]


@dataclass(frozen=True)
class Passing:
    """Whom a pass tells how far it is, and the folder where it keeps the finished blocks, if it does."""

    progress: Progress = lambda done, total: None
    saved: Path | None = None


def pass_over(
    stream: BlockStream,
    batches: list[torch.Tensor],
    find: Find,
    passing: Passing = Passing(),
    go_on: Callable[[int, torch.nn.Module, Callable, Block], None] | None = None,
) -> list[Block]:
    """What `find(index, layer, forward)` says of every block; tensors by name, on the CPU.

    Where find gives a function that makes them, that is called when the block has been passed: of
    several ranks each calls it for another block, once there is one for each of them.

    forward is as in `BlockStream.run`, and find has to go through it. Finished blocks are kept in the
    folder of `passing`, and taken from it if they are there; of such a block only the output is
    computed again, as far as not even that was kept. Of several ranks the first keeps them and tells
    the others; the stream between two blocks is kept by a process alone. go_on(index, layer, forward,
    known) makes that output of what is passed on, where it is not the dense block's.
    """
    blocks, results = stream.checkpoint.blocks, {}
    saved, progress, ranks = passing.saved, passing.progress, stream.ranks
    waiting: dict[
        int, Later | None
    ] = {}  # blocks to be made; None of those that another rank makes

    def finished(index: int) -> Block | None:
        return ranks.told(lambda: finished_block(saved, index))

    def keep(index: int, found: Block) -> Block:
        results[index] = on_cpu(found)
        keep_block(saved, index, results[index])
        return results[index]

    def visit(index: int, layer, forward) -> None:
        known = kept = finished(index)
        if kept is None:
            found = find(index, layer, forward)
            if callable(found):
                waiting[index] = found if len(waiting) == ranks.rank else None
            else:
                known = keep(index, found)
        else:
            results[index] = kept
        if go_on is not None:
            go_on(index, layer, forward, known)
        elif kept is not None:  # nothing else has gone through it
            for _ in forward():
                pass
        if len(waiting) == ranks.world or index + 1 == blocks:
            make_waiting()
        progress(index + 1 - len(waiting), blocks)

    def make_waiting() -> None:
        mine = {index: on_cpu(later()) for index, later in waiting.items() if later is not None}
        waiting.clear()
        for made in ranks.gathered(mine):
            for index, block in made.items():
                keep(index, block)

    if any(finished(index) is None for index in range(blocks)):
        pauses = Pauses(saved if ranks.world == 1 else None)
        stream.run(batches, visit, pauses=pauses).discard()
        pauses.over()
    # A block all of which stays has no tensors.
    return [results[i] if i in results else finished(i) for i in range(blocks)]


def on_cpu(block: Block) -> Block:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in block.items()}
