"""Blocks to drop, chosen by the loss that the model has without them.

Greedy: of the few blocks of the least influence that are still there, the one goes without which the
loss on held-back text is the least, and so on. What is lost together is measured together, which no
score of single blocks sees. Folds and repairs come after: they lower the loss of all choices, and would
take a pass over the calibration text for each.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from compressor.measuring.guard import loss_after
from compressor.model.fewer_blocks import FewerBlocks, may_go
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.text.tokens import TokenSet

CANDIDATES = 4  # tried for every block that goes


@torch.no_grad()
def judged_drops(
    stream: BlockStream,
    influence: Sequence[float],
    asked: tuple[int, Sequence[int]],
    judged: TokenSet,
    known: Mapping[str, float] | None = None,
    done: Callable[[dict[str, float]], None] = lambda losses: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[int]:
    """As many blocks as asked, of those that may go (asked: how many, and of which), ascending.

    known: losses by the blocks that are missing (`3,7`) that need not be measured again; done(losses)
    after each measurement.
    """
    count, free = asked
    losses = dict(known or {})
    dropped: list[int] = []
    for step in range(count):
        left = [b for b in free if b not in dropped and may_go([*dropped, b], stream.checkpoint)]
        left.sort(key=influence.__getitem__)
        tried = {}
        for candidate in left[:CANDIDATES]:
            without = sorted([*dropped, candidate])
            name = ",".join(map(str, without))
            if name not in losses:
                losses[name] = loss_without(stream, without, judged)
                done(losses)
            tried[candidate] = losses[name]
        dropped.append(min(tried, key=tried.__getitem__))
        progress(step + 1, count)
    return sorted(dropped)


def loss_without(stream: BlockStream, dropped: Sequence[int], judged: TokenSet) -> float:
    """Nats a token of the model without these blocks, nothing being folded."""
    part = FewerBlocks(stream.checkpoint, dropped)
    return loss_after(stream.without(part), Plan.whole(part), judged, judged)
