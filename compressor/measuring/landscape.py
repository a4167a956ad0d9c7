"""The landscape of a model's cuts: the error that every cut of each block alone leaves at its output.

A cut of a block keeps so many KV groups and FFN channels, the best-scored ones. Its error is

    E = mean_t |y_t - y~_t|^2 / |y_t|^2

y the dense block's output at a token, y~ the cut block's on the same input. It is the error that a
following norm sees, and the one the ridge repair weighs tokens by. For each number of groups the block
runs once more, and the sums over its tokens give the errors of all FFN widths (`prefixes.py`). Where a
repair follows, o_proj and down_proj are refitted as it will do, and the error is that of sequences the
refit has not seen. Ours; it holds for dense inputs, so what earlier blocks break is not in it.
"""

from collections.abc import Callable, Sequence

import torch

from compressor.config.repair import KINDS
from compressor.cutting.cut import channels_of
from compressor.errors import InputError
from compressor.measuring.probes import Probes, refitted
from compressor.model.activations import Activations, states_of
from compressor.model.families import Family
from compressor.model.groups import unit_names
from compressor.model.layers import added, captured, norm_of
from compressor.model.observing import observed
from compressor.model.passes import Passing
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Lattice
from compressor.solvers.prefixes import plain_errors, refit_errors
from compressor.solvers.ridge import GRID, Moments, rates, wide
from compressor.text.tokens import Batch, TokenSet

HELD_BACK = 8  # every so many sequences judge the refits


def measure_landscape(
    orders: Sequence[dict[str, torch.Tensor]],
    stream: BlockStream,
    tokens: TokenSet,
    lattice: Lattice,
    repair: str,
    learning: Callable | None = None,
    probing: bool = False,
    passing: Passing = Passing(),
) -> Landscape:
    """The landscape for units kept in the order of their scores, `orders[block][group]` [units].

    learning(index, block, scores, lattice): what to learn of each `BlockCuts`, for `learned`.
    probing: whether the loss of some cuts is measured too (`probes.py`), on the sequences held back.

    One forward pass, and one more of every FFN for each number of groups; one block in memory.
    InputError for a refit of fewer than two sequences, and activations that are not finite or all 0.
    """
    kind = KINDS[repair]
    refit = kind is not None and kind.weights  # of the output projections
    fitted, held = (part.sequences for part in tokens.split(HELD_BACK))
    if not refit and not probing:
        fitted, held = [*fitted, *held], []
    if not fitted or ((refit or probing) and not held):
        raise InputError("The errors of repaired cuts need at least 2 calibration sequences.")
    batches = TokenSet(fitted).batches(stream.batch_tokens)
    first_held = len(batches)
    batches += TokenSet(held).batches(stream.batch_tokens)
    blocks = []
    probes = Probes(stream, batches, first_held, lattice) if probing else None

    def measured(index: int, layer, forward) -> dict[str, torch.Tensor]:
        geometry = BlockGeometry.of(stream.checkpoint, index)
        block = BlockCuts(stream, geometry, layer, batches, first_held, refit)
        block.observe(forward)
        tensors = {"errors": block.errors(orders[index], lattice, probes)} | block.cut
        if block.silent or not tensors["errors"].isfinite().all():
            raise InputError(
                f"The outputs of block {index} are not finite, or all zero; the checkpoint or the "
                "calibration text is damaged, or the model needs --dtype float32."
            )
        if learning is not None:
            tensors["learned"] = learning(index, block, orders[index], lattice)
        block.discard()
        return tensors

    def visit(index: int, layer, forward) -> None:
        tensors = finished_block(passing.saved, index)
        if probes is not None:
            forward = probes.heard(layer, forward)
        if tensors is None:
            tensors = measured(index, layer, forward)
            keep_block(passing.saved, index, tensors)
        else:
            for _ in forward():
                pass
        if probes is not None:
            tensors = probes.carry(layer, tensors)
        blocks.append(tensors)
        passing.progress(index + 1, stream.checkpoint.blocks)

    leaving = stream.run([b.ids for b in batches], visit)
    losses = [] if probes is None else probes.losses(leaving)
    leaving.discard()
    return Landscape(
        [block["errors"] for block in blocks],
        lattice.attention,
        lattice.ffn,
        {"repair": repair if refit else "none", "calibration": tokens.protocol},
        [block["learned"] for block in blocks if "learned" in block],
        losses,
        [] if probes is None else probes.cuts,
    )


def check_family(family: Family) -> None:
    """Refuse blocks in which the FFN widths' errors are no sums over the tokens."""
    if family.experts:
        raise InputError(
            "--allocate exact, measured and besa take the errors of all cuts of an FFN's channels, and "
            f"the units of {family.model_type} are {unit_names(family)['ffn']}; use --allocate uniform."
        )
    if family.post_norms:
        raise InputError(
            "--allocate exact, measured and besa take the errors of all cuts from the sums of what the "
            f"output projections add to the stream, and {family.model_type} norms that before it is "
            "added; use --allocate uniform or global."
        )


class BlockCuts:
    """All cuts of one block, whose weights are in `layer`."""

    def __init__(
        self,
        stream: BlockStream,
        geometry: BlockGeometry,
        layer,
        batches: list[Batch],
        first_held: int,
        refit: bool,
    ):
        check_family(geometry.family)
        self.stream, self.geometry, self.layer = stream, geometry, layer
        self.batches, self.first_held, self.refit = batches, first_held, refit
        self.device, self.family = stream.device, geometry.family
        self.before, self.heads, self.after, self.out = (
            Activations(stream.place) for _ in range(4)
        )
        self.cut: dict[str, torch.Tensor] = {}  # what the probes take

    def errors(
        self, scores: dict[str, torch.Tensor], lattice: Lattice, probes: Probes | None = None
    ) -> torch.Tensor:
        """float64 [numbers of groups, FFN widths], on the CPU; the probes take their cuts."""
        groups = (-scores["attention"]).argsort(stable=True)
        channels = (-scores["ffn"]).argsort(stable=True).to(self.device)
        changes = self.attention_changes(groups, lattice.attention)
        widths = torch.tensor(lattice.ffn)
        rows: list[torch.Tensor] = []
        for groups_kept, change in zip(lattice.attention, changes, strict=True):
            if not rows or "attention" in self.geometry.units:  # else the attention stays as it is
                fit, held = self.ffn_sums(change)
            if probes is not None:
                self.cut |= probes.outputs(self, groups_kept, change, channels, [fit, held])
            down = self.output("ffn").weight
            if self.refit:
                errors = refit_errors(fit, held, down, channels, GRID)
            else:
                errors = plain_errors(fit, down, channels)
            # What is wider than the block is the whole block.
            kept = widths.clamp(max=len(channels))
            rows.append(errors.cpu()[kept] / self.energy[self.refit])
        return torch.stack(rows).clamp_min(0)

    def discard(self) -> None:
        for states in (self.before, self.heads, self.after, self.out):
            states.discard()

    def output(self, group: str) -> torch.nn.Linear:
        return self.layer.get_submodule(self.geometry.output_module(group))

    def added(self, group: str, projected: torch.Tensor) -> torch.Tensor:
        return added(self.layer, self.family, group, projected)

    def observe(self, forward) -> None:
        """Run the dense block, and keep the stream before it and after both sub-layers, and what enters
        o_proj.
        """
        seen: dict[str, torch.Tensor] = {}
        entering = {
            self.geometry.output_module("attention"): lambda x: seen.update(heads=x),
            self.family.entered("ffn"): lambda x: seen.update(after=x),
        }
        passed = {"": lambda x, out: seen.update(before=x, out=states_of(out))}
        self.silent = True
        self.energy = [0.0, 0.0]  # of the tokens fitted and held back, each of energy 1
        with observed(self.layer, entering, passed):
            for i in forward():
                self.keep(i, **seen)

    def keep(self, i: int, before, heads, after, out) -> None:
        """What was seen of a batch."""
        if self.geometry.parallel:  # the FFN's norm does not see the stream after the attention
            after = before + self.added("attention", self.output("attention")(heads))
        self.before.put(i, before)
        self.heads.put(i, heads)
        self.after.put(i, after.view_as(before))
        self.out.put(i, out)
        self.energy[i >= self.first_held] += float(self.batches[i].tokens)
        self.silent = self.silent and not out.any()

    def rows(self, states: Activations, i: int) -> torch.Tensor:
        """The real tokens of a batch [tokens, channels]."""
        return self.batches[i].real(states.get(i, self.device))

    def moments(self, channels: int, outputs: int) -> list[Moments]:
        dtype = torch.float32 if self.stream.dtype == torch.float16 else self.stream.dtype
        return [Moments.empty(channels, outputs, self.device, dtype) for _ in range(2)]

    def attention_changes(self, order: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
        """By how much o_proj's weights differ [outputs, inputs] when so many groups are kept."""
        weight = wide(self.output("attention").weight)
        if "attention" not in self.geometry.units:
            return [torch.zeros_like(weight)] * len(counts)
        sums = self.moments(weight.shape[1], weight.shape[0])
        if self.refit:
            for i in range(len(self.batches)):
                after, inputs = wide(self.rows(self.after, i)), wide(self.rows(self.heads, i))
                rate = rates(after)
                sums[i >= self.first_held].add(inputs * rate, inputs @ weight.T * rate)
        changes, width = [], self.geometry.channels("attention")
        for count in counts:
            kept = channels_of(sorted(order[:count].tolist()), width).to(self.device)
            refit = self.refit and len(kept) < weight.shape[1]
            changes.append(refitted(weight, kept, sums, refit) - weight)
        return changes

    def ffn_sums(self, change: torch.Tensor) -> list[Moments]:
        """Of the fitted and the held-back tokens, the sums of what down_proj reads and should give."""
        down = self.output("ffn")
        sums = self.moments(down.weight.shape[1], down.weight.shape[0])
        for i in range(len(self.batches)):
            real = self.batches[i].real
            out = self.rows(self.out, i)
            stream, inputs = (real(x) for x in self.cut_states(i, change))
            targets = (wide(out) - wide(stream)).div_(self.geometry.times)
            if down.bias is not None:
                targets -= wide(down.bias)
            rate = self.geometry.times * rates(out) / out.shape[-1] ** 0.5
            sums[i >= self.first_held].add(wide(inputs) * rate, targets * rate)
        return sums

    def cut_states(self, i: int, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of batch i the stream after an attention whose o_proj has changed by `change`, and what
        down_proj then reads, both [sequences, tokens, channels].
        """
        family, norm = self.family, norm_of(self.layer, self.family, "ffn")
        after, heads = (states.get(i, self.device) for states in (self.after, self.heads))
        stream = after + self.added("attention", heads @ change.T.to(heads.dtype))
        read = norm(self.before.get(i, self.device) if self.geometry.parallel else stream)
        return stream, captured(
            self.output("ffn"), lambda: family.feed_forward(self.layer, read)
        ).view(*stream.shape[:-1], -1)
