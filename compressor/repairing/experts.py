"""The closed form of a mixture's repair: the output projection of each kept expert, one after the other.

A block adds sum_e g_e(x) W_e a_e(x) to the stream, of the experts e that the cut router sends x to: g_e
its weight and a_e what W_e reads. Expert by expert, W_e is refitted by ridge regression on the tokens
that now reach it, toward what is left of the aim when all others stay as they are,

    g_e a_e  ->  aim - sum of the others,

and what it then gives is taken off before the next one's turn (Gauss and Seidel's way with one large
regression, whose Gram matrix would be of all experts' channels). The aim is that of every repair: the
dense model's stream after the block (`streaming.py`), or its FFN's own output. A token counts for each
expert that it is sent to; regressions choose their lambda on tokens held back, as elsewhere.
"""

from dataclasses import dataclass

import torch

from compressor.model.activations import Activations
from compressor.model.experts import inner_of
from compressor.repairing.fitting import BlockFit
from compressor.solvers.ridge import GRID, Pairs, rates, regress, summed_in


@dataclass
class Routed:
    """Of every batch what the experts read and what they are still to give, [tokens, hidden], with every
    token's experts, their weights [tokens, per token], and how much it counts [tokens, 1].
    """

    read: Activations
    left: Activations
    chosen: list[torch.Tensor]
    weights: list[torch.Tensor]
    counts: list[torch.Tensor]


class ExpertFit:
    """The refits of one block. after: the cut path's stream after its attention; read: what its FFN's
    norm reads; dense_out: the dense path's stream after the block.
    """

    def __init__(
        self, fit: BlockFit, after: Activations, read: Activations, dense_out: Activations
    ):
        self.fit = fit
        self.experts = fit.family.experts
        self.stack = fit.narrow.get_submodule(self.experts.stack)
        self.name = self.experts.down
        place = fit.task.stream.place
        self.routed = Routed(Activations(place), Activations(place), [], [], [])
        for i, batch in enumerate(fit.task.batches):
            x, seen = (states.get(i, fit.device) for states in (after, read))
            self.look(i, batch, x, seen, dense_out)

    def look(self, i: int, batch, x, seen, dense_out: Activations) -> None:
        """Run the cut FFN on a batch, and keep what its experts read and what it lacks."""
        fit, routed, taken = self.fit, self.routed, []
        hook = self.stack.register_forward_pre_hook(lambda _, args: taken.append(args))
        with hook:
            given = fit.ffn(fit.narrow, seen)
        hidden, chosen, weights = (batch.real(t) for t in taken[0])
        if fit.toward_dense:
            out = dense_out.get(i, fit.device)
            aim = (out.float() - x.float()) / fit.geometry.times
        else:
            aim = fit.ffn(fit.layer, seen).float()
            out = x + fit.normed("ffn", aim)
        routed.read.put(i, hidden)
        routed.left.put(i, batch.real(aim - given.float()))
        routed.chosen.append(chosen.cpu())
        routed.weights.append(weights.cpu())
        routed.counts.append(batch.real(rates(out)).cpu())

    def run(self) -> None:
        """Refit all experts."""
        fit, device = self.fit, self.fit.device
        stored = fit.stored[self.name]
        whole = stored.to(device, torch.float32, copy=True)
        for expert, present in enumerate(whole):
            new, outcome = regress(
                self.pairs(expert, present),
                fit.task.fitted,
                present,
                summed_in(fit.task.stream.dtype),
                GRID,
                f"expert {expert} of block {fit.index}",
                fit.task.stream.ranks,
            )
            if outcome is None:
                continue
            fit.record[f"expert {expert}"] = outcome
            if new is None:
                continue
            new = new.to(stored.dtype).float()
            if not new.isfinite().all():
                outcome |= {"lambda": None, "after": outcome["before"]}
                continue
            self.take_off(expert, new - present)
            whole[expert] = new
        if not torch.equal(whole, stored.to(device, torch.float32)):
            fit.replace("experts", {self.name: whole})
        self.routed.read.discard()
        self.routed.left.discard()

    def inputs(self, expert: int, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens of a batch reach an expert, and its g a of them in float32."""
        device, routed = self.fit.device, self.routed
        tokens, places = torch.where(routed.chosen[i] == expert)
        weights = routed.weights[i][tokens, places, None].to(device).float()
        tokens = tokens.to(device)
        read = routed.read.get(i, device)[tokens]
        return tokens, inner_of(self.stack, expert, read).float() * weights

    def pairs(self, expert: int, present: torch.Tensor) -> Pairs:
        """What a refit is made of: of every batch g a and the aim, with every token's weight in them."""
        for i, counts in enumerate(self.routed.counts):
            tokens, inputs = self.inputs(expert, i)
            counted = counts.to(self.fit.device)[tokens]
            left = self.routed.left.get(i, self.fit.device)[tokens]
            aim = left + inputs @ present.T
            yield inputs * counted, aim * counted

    def take_off(self, expert: int, change: torch.Tensor) -> None:
        """What a changed expert gives more is no longer left for the others."""
        for i in range(len(self.routed.counts)):
            tokens, inputs = self.inputs(expert, i)
            left = self.routed.left.get(i, self.fit.device)
            left[tokens] -= inputs @ change.T
            self.routed.left.put(i, left)
