"""How much every channel of the residual stream is read: its energy behind the norms.

Of each norm that a part of a block, or the head, reads the stream through, a channel's energy is the sum
of squares of what the norm gives, its weight included, over the tokens; a channel's score is the sum of
these, as shares of each norm's, over all norms. Where a part reads the stream itself, every token is
divided by its root mean square. After Minitron (arXiv 2407.14679), which averages absolute values and
has no shares; with shares no block counts for more because its norm's weights are large.
"""

from contextlib import nullcontext
from functools import partial

import torch

from compressor.model.activations import states_of
from compressor.model.observing import Passed, observed
from compressor.model.passes import Passing, pass_over
from compressor.model.stream import BlockStream
from compressor.solvers.ridge import rates
from compressor.text.tokens import Batch, TokenSet


def energies(stream: BlockStream, tokens: TokenSet, passing: Passing = Passing()) -> torch.Tensor:
    """Of every channel, float64, all together 1; finished blocks are kept in the folder of `passing`."""
    batches, source = tokens.batches(stream.batch_tokens), stream.checkpoint
    family = source.family
    through = {
        family.entered(group): norm is not None
        for group, norm in (("attention", family.attention_norm), ("ffn", family.ffn_norm))
    }

    def find(index: int, layer, forward) -> dict[str, torch.Tensor]:
        sums = {name: Energy(batches) for name in through}
        normed: dict[str, Passed] = {
            n: partial(after, sums[n]) for n, norm in through.items() if norm
        }
        raw = {n: partial(before, sums[n]) for n, norm in through.items() if not norm}
        last = index == source.blocks - 1
        with stream.outer(head=False) if last else nullcontext() as model:
            if last:
                norm = model.get_submodule(source.last_norm.removesuffix(".weight"))
                sums["head"] = left = Energy(batches)
                normed[""] = lambda _, out: left.add(norm(states_of(out)))
            with observed(layer, raw, normed):
                for _ in forward():
                    pass
        shares = [s.squares / s.squares.sum() for s in sums.values()]
        return {"energy": torch.stack(shares).sum(0)}

    found = pass_over(stream, [batch.ids for batch in batches], find, passing)
    energy = torch.stack([block["energy"] for block in found]).sum(0)
    return energy / energy.sum()


def after(energy: "Energy", _, output) -> None:
    energy.add(output)


def before(energy: "Energy", x: torch.Tensor) -> None:
    energy.add(x * rates(x))


class Energy:
    """The sums of squares of every channel over a text's tokens, given batch by batch."""

    def __init__(self, batches: list[Batch]):
        self.batches, self.seen, self.squares = batches, 0, torch.zeros(())

    def add(self, states: torch.Tensor) -> None:
        real = self.batches[self.seen].real(states).double()
        self.squares, self.seen = self.squares + real.square().sum(0), self.seen + 1


def most(energy: torch.Tensor, count: int) -> list[int]:
    """The `count` channels of the most energy, ascending."""
    return sorted(energy.argsort(descending=True, stable=True)[:count].tolist())
