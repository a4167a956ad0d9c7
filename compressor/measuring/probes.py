"""What the errors of blocks are worth: the loss of the model with one block cut, measured.

A block's error (`landscape.py`) says how far its output moves, not what that does to the predictions.
So three cuts of every block, half its KV groups, half its FFN channels and both, refitted where a repair
follows, are carried through the dense blocks behind it, as probes are (`probing.py`), and the loss is
measured on calibration sequences that no refit has seen. The curves of the loss, in nats a token, are

    L_b(cut) = s_b E_b(cut),    s_b = sum L E / sum E^2 over the three cuts,

E_b the block's errors of all cuts on the lattice, which know every width and fade out a loss's noise.
`solvers/exact.py` adds the curves of all blocks up. Ours.

A block's cuts each pass half of the blocks, so this takes 1.5 (blocks + 1) forward passes of the
sequences that the loss is measured on: of those held back so many that it is at most `FORWARDS` forward
passes of the whole text, and one batch at the least.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, product

import torch
from torch.nn.functional import linear

from compressor.errors import InputError
from compressor.model.activations import Activations, states_of
from compressor.model.stream import BlockStream
from compressor.planning.lattice import Lattice
from compressor.scoring.probing import head_nll
from compressor.solvers.ridge import GRID, Moments, ridge
from compressor.text.tokens import Batch

FORWARDS = 2
CUT = "cut."


def half(widths: Sequence[int]) -> int:
    return min(widths, key=lambda n: abs(n - widths[-1] / 2))


def halves(lattice: Lattice) -> list[tuple[int, int]]:
    """The cuts of every block whose loss is measured: numbers of KV groups and of FFN channels."""
    groups, channels = (
        sorted({half(widths), widths[-1]}) for widths in (lattice.attention, lattice.ffn)
    )
    return list(product(groups, channels))[:-1]


class Probes:
    """The cuts of all blocks on their way to the loss.

    The loss is measured on batches from number `first_held` on. The states of all cuts are in the
    host's memory, or in files.
    """

    def __init__(
        self, stream: BlockStream, batches: list[Batch], first_held: int, lattice: Lattice
    ):
        self.stream, self.batches = stream, batches
        self.cuts = halves(lattice)
        sizes = [batch.tokens for batch in batches]
        room = FORWARDS * sum(sizes) / (1.5 * (stream.checkpoint.blocks + 1))
        spent = list(accumulate(sizes[first_held:]))
        count = max(1, sum(tokens <= room for tokens in spent))
        self.probing = range(first_held, first_held + count)
        self.states, self.count = Activations(stream.place), 0
        self.calls: dict[int, tuple] = {}

    def key(self, cut: int, i: int) -> int:
        return cut * len(self.batches) + i

    def heard(self, layer, forward: Callable[[], Iterator[int]]) -> Callable[[], Iterator[int]]:
        """`forward`, noting what the layer is called with besides the stream."""

        def iterate() -> Iterator[int]:
            seen: dict[str, tuple[tuple, dict]] = {}

            def note(_, args: tuple, keywords: dict) -> None:
                seen["call"] = args[1:], keywords

            with layer.register_forward_pre_hook(note, with_kwargs=True):
                for i in forward():
                    self.calls[i] = seen["call"]
                    yield i

        return iterate

    def outputs(
        self, block, groups: int, change: torch.Tensor, order: torch.Tensor, sums: list[Moments]
    ) -> dict[str, torch.Tensor]:
        """The streams after a block's cuts with so many KV groups, whose o_proj has changed by `change`.

        block: a `BlockCuts`; order: of the channels; sums: over the tokens fitted and held back, of what
        down_proj reads and should give. By name: which cut of the block, and which batch.
        """
        mine = [(cut, w) for cut, (k, w) in enumerate(self.cuts) if k == groups]
        down, streams = block.output("ffn"), {}
        weights = {cut: refitted(down.weight, order[:w], sums, block.refit) for cut, w in mine}
        for i in self.probing if mine else ():
            stream, inputs = block.cut_states(i, change)
            for cut, weight in weights.items():
                out = stream + block.added("ffn", linear(inputs, weight, down.bias))
                streams[f"{CUT}{cut}.{i}"] = out.cpu()
        return streams

    def carry(self, layer, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the cuts of earlier blocks through a dense block, and this one's from its `tensors`;
        what remains of these.
        """
        for cut in range(self.count):
            for i in self.probing:
                args, keywords = self.calls[i]
                hidden = self.states.get(self.key(cut, i), self.stream.device)
                self.states.put(self.key(cut, i), states_of(layer(hidden, *args, **keywords)))
        for name in [name for name in tensors if name.startswith(CUT)]:
            cut, i = map(int, name.removeprefix(CUT).split("."))
            self.states.put(self.key(self.count + cut, i), tensors[name])
        self.count += len(self.cuts)
        return {name: value for name, value in tensors.items() if not name.startswith(CUT)}

    def losses(self, dense: Activations) -> list[torch.Tensor]:
        """By how much every block's `cuts` raise the loss: float64 [cuts], nats a token.

        dense: what leaves the last block of the dense model. InputError where a loss is not finite.
        """
        nll = torch.zeros(self.count + 1, dtype=torch.float64)
        device = self.stream.device
        with self.stream.outer(head=True) as model:
            for i in self.probing:
                for cut in range(self.count):
                    hidden = self.states.get(self.key(cut, i), device)
                    nll[cut] += head_nll(self.stream, model, hidden, self.batches[i]).cpu()
                hidden = dense.get(i, device)
                nll[-1] += head_nll(self.stream, model, hidden, self.batches[i]).cpu()
        self.states.discard()
        if not nll.isfinite().all():
            raise InputError("The loss of a cut model is not finite; try --dtype float32.")
        if not self.cuts:
            return []
        predicted = sum(self.batches[i].predicted for i in self.probing)
        changes = (nll[:-1] - nll[-1]) / max(1, predicted)
        return list(changes.split(len(self.cuts)))


def refitted(
    weight: torch.Tensor, kept: torch.Tensor, sums: list[Moments], refit: bool
) -> torch.Tensor:
    """A projection's weights with the kept input channels alone, the others zero."""
    masked = torch.zeros_like(weight)
    masked[:, kept] = weight[:, kept]
    if refit:
        fit, held = ((s.gram[kept][:, kept], s.cross[:, kept]) for s in sums)
        present = masked[:, kept].to(fit[0].dtype)
        masked[:, kept] = ridge(*fit, present, *held, sums[1].energy, GRID)[0].to(weight.dtype)
    return masked
