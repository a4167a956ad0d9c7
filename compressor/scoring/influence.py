"""How much every block changes the stream: 1 - cosine of what enters and what leaves it.

Averaged over the tokens, from one pass over the text (ShortGPT, arXiv 2403.03853, "block influence"). A
block of little influence is one that a model can best do without.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity

from compressor.model.activations import states_of
from compressor.model.observing import observed
from compressor.model.passes import Passing, pass_over
from compressor.model.stream import BlockStream
from compressor.text.tokens import Batch, TokenSet


def influences(stream: BlockStream, tokens: TokenSet, passing: Passing = Passing()) -> list[float]:
    """Of every block; finished ones are kept in the folder of `passing`, and taken from it."""
    batches = tokens.batches(stream.batch_tokens)

    def find(index: int, layer, forward) -> dict[str, torch.Tensor]:
        sums: list[torch.Tensor] = []

        def add(x: torch.Tensor, output) -> None:
            sums.append(turned(x, states_of(output), batches[len(sums)]))

        with observed(layer, passed={"": add}):
            for _ in forward():
                pass
        return {"influence": torch.stack(sums).sum() / tokens.tokens}

    found = pass_over(stream, [batch.ids for batch in batches], find, passing)
    return [block["influence"].item() for block in found]


def turned(before: torch.Tensor, after: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sum over a batch's tokens of 1 - cosine, float64."""
    entering, leaving = (batch.real(states).double() for states in (before, after))
    return (1 - cosine_similarity(entering, leaving, dim=-1)).sum()


def least(found: Sequence[float], count: int, free: Sequence[int]) -> list[int]:
    """The `count` blocks of the least influence among those that are `free` to go, ascending."""
    return sorted(sorted(free, key=found.__getitem__)[:count])
