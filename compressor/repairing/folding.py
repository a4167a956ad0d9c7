"""What dropped blocks have done, folded into the block before them, by least squares.

Of a run of dropped blocks, let Y be the stream after it in the dense model. In the model without the
blocks, let M be what the FFN of the block before the run gives, and X the stream that it is added to.
Then

    T = argmin sum over tokens of |X + T M - Y|^2 / mean square of Y,   drawn toward the identity,

goes into `down_proj`: W' = T W, and its bias likewise, which takes a constant besides; into that of
every expert, where there are any. A token counts as in every refit (`streaming.py`), and lambda is
chosen on held-back sequences from the same grid, 0 before it. Where a norm follows `down_proj`, T is
diagonal and goes into the norm's weight.

The map is that of ReplaceMe (arXiv 2505.02819), where X and M are the dense model's. Ours: X and M are
of the model as it is folded so far, so that a fold also mends what those before it have left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.activations import Activations, states_of
from compressor.model.digest import digest
from compressor.model.fewer_blocks import FewerBlocks
from compressor.model.layers import added, passed
from compressor.model.memory import trim_heap
from compressor.model.modules import loaded
from compressor.model.observing import observed
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.streaming import HELD_BACK
from compressor.solvers.diagonal import scale
from compressor.solvers.ridge import GRID, Pairs, rates, regress, summed_in, wide
from compressor.text.tokens import Batch, TokenSet

Block = dict[str, torch.Tensor]

LAMBDAS = (0.0, *GRID)


@dataclass
class Folded:
    """tensors: new ones, by their names in the model without the blocks, as `Source.read` has them.
    record: of every run what was dropped, the block that it went `into` (numbers of the whole model),
    the tensors that changed, lambda (None: nothing did) and the held-back error before and after, as a
    share of the energy of what the run and the FFN before it add.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    record: list[dict] = field(default_factory=list)


def check_held_back(tokens: TokenSet) -> None:
    """Refuse a text of which nothing can be held back."""
    if len(tokens.sequences) < 2:
        raise InputError(
            "What dropped blocks did is folded on a part of the calibration text and judged on the "
            f"rest, so at least 2 sequences are needed, not {len(tokens.sequences)}; raise --samples."
        )


def fold_record(source: Source, plan: Plan, repair: dict | None) -> dict:
    """What compression.json keeps of every block: the folded `tensors` that a repair has not replaced,
    and the digest of them as they are cut.
    """
    folded = source.folded if isinstance(source, FewerBlocks) else {}
    record: list[dict] = []
    for block, kept in enumerate(plan.blocks):
        prefix = source.block_name(block, "")
        names = {name.removeprefix(prefix) for name in folded if name.startswith(prefix)}
        names -= {*repair["blocks"][block]["tensors"]} if repair else set()
        tensors = {n: folded[prefix + n] for n in sorted(names)}
        tensors = cut_block(tensors, source, kept) if tensors else {}
        record.append({"tensors": sorted(names), "sha256": digest(tensors)})
    return {"blocks": record}


def runs_of(dropped: Sequence[int]) -> list[list[int]]:
    """Dropped blocks that follow each other, together."""
    runs: list[list[int]] = []
    for block in sorted(dropped):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


class Run:
    """One run of dropped blocks, and the block before it, into which they are folded.

    calls: of that block; text: all batches. `record` is made by `fold`.
    """

    def __init__(
        self,
        stream: BlockStream,
        before: int,
        blocks: list[int],
        text: list[Batch],
        calls: list[tuple],
    ):
        self.stream, self.before, self.blocks = stream, before, blocks
        self.text, self.calls = text, calls
        self.family, self.device = stream.checkpoint.families[before], stream.device
        self.given, self.out = Activations(stream.place), Activations(stream.place)

    def enter(self, layer: nn.Module, states: Activations) -> Activations:
        """Take in what the block does with the states of the cut path; copies of what it gives."""
        self.states, copies = states, Activations(self.stream.place)
        experts = self.family.experts
        module = experts.all if experts else self.family.output("ffn").removesuffix(".weight")
        for i, (args, call) in enumerate(self.calls):

            def keep(_, projected: torch.Tensor | tuple, i: int = i) -> None:
                self.given.put(i, added(layer, self.family, "ffn", states_of(projected)))

            with observed(layer, passed={module: keep}):
                out = states_of(layer(states.get(i, self.device), *args, **call))
            self.out.put(i, out)
            copies.put(i, out)
        return copies

    def pairs(self, dense: Activations, constant: bool) -> Pairs:
        """What the block's FFN gives, and what it should give for the stream to be the dense one."""
        for i, batch in enumerate(self.text):
            given, out, aim = (wide(s.get(i, self.device)) for s in (self.given, self.out, dense))
            given = given.view_as(out)  # OPT's FFN has its tokens in one row
            rate = batch.real(rates(aim))
            inputs = given
            if constant:
                inputs = torch.cat((given, torch.ones_like(given[..., :1])), -1)
            yield batch.real(inputs) * rate, batch.real(aim - out + given) * rate

    def fold(self, dense: Activations, fitted: int) -> Block:
        """New tensors of the block, by their names inside it; none where the present are no worse."""
        stored = self.stream.checkpoint.read_block(self.before)
        norm = self.family.post_norms.get("ffn")
        made = self.into_norm if norm else self.into_projection
        changed, outcome = made(stored, dense, fitted)
        self.given.discard()
        self.out.discard()
        self.record = {"dropped": self.blocks, "into": self.before, **(outcome or {"lambda": None})}
        changed = {n: t.to("cpu", stored[n].dtype).contiguous() for n, t in changed.items()}
        if not all(t.isfinite().all() for t in changed.values()):
            self.record["lambda"], self.record["after"] = None, self.record["before"]
            return {}
        return changed

    def into_projection(
        self, stored: Block, dense: Activations, fitted: int
    ) -> tuple[Block, dict | None]:
        experts = self.family.experts
        if experts:
            names = [n for n in (experts.down, experts.shared) if n]
        else:
            names = [self.family.output("ffn")]
        bias_name = names[0].replace(".weight", ".bias")
        bias = None if experts else stored.get(bias_name)
        many, dtype = self.stream.checkpoint.hidden_size, self.stream.dtype
        exact = dtype if dtype == torch.float64 else summed_in(dtype)
        present = torch.eye(
            many,
            many + (bias is not None),
            dtype=torch.promote_types(exact, torch.float32),
            device=self.device,
        )
        pairs = self.pairs(dense, bias is not None)
        what = f"block {self.before} (fold)"
        new, outcome = regress(pairs, fitted, present, exact, LAMBDAS, what)
        if new is None:
            return {}, outcome
        changed = {n: new[:, :many] @ stored[n].to(new) for n in names}
        if bias is not None:
            changed[bias_name] = new[:, :many] @ bias.to(new) + new[:, many]
        return changed, outcome

    def into_norm(
        self, stored: Block, dense: Activations, fitted: int
    ) -> tuple[Block, dict | None]:
        factors, outcome = scale(self.pairs(dense, False), fitted, LAMBDAS)
        if factors is None:
            return {}, outcome
        name, offset = f"{self.family.post_norms['ffn']}.weight", self.family.norm_offset
        weight = stored[name].to(factors)
        return {name: factors * (weight + offset) - offset}, outcome

    def leave(self, changed: Block) -> Activations:
        """The cut path's states after the folded block."""
        stored = self.stream.checkpoint.read_block(self.before) | changed
        with loaded(self.stream.layers[self.before], self.stream.cast(stored)) as layer:
            return passed(self.stream, layer, self.states, self.calls)


@torch.no_grad()
def fold(
    stream: BlockStream,
    dropped: Sequence[int],
    tokens: TokenSet,
    progress=lambda done, total: None,
) -> Folded:
    """Fold the dropped blocks of the source of `stream` into those before them, in order; streamed, as
    far as the last of them.
    """
    check_held_back(tokens)
    view, folded = FewerBlocks(stream.checkpoint, dropped), Folded()
    fitted, held = tokens.split(HELD_BACK)
    first = fitted.batches(stream.batch_tokens)
    text = [*first, *held.batches(stream.batch_tokens)]
    runs = {run[0] - 1: run for run in runs_of(dropped)}
    ends = {run[-1] for run in runs.values()}
    dense, calls = stream.record([batch.ids for batch in text])
    cut, end = dense, max(dropped) + 1
    for index, weights in stream.weights(range(end)):
        called = [call[index] for call in calls]
        with loaded(stream.layers[index], weights) as layer:
            del weights
            if index in runs:
                run = Run(stream, index, runs[index], text, called)
                after = run.enter(layer, cut)
                dense = after if dense is cut else passed(stream, layer, dense, called)
            elif dense is cut and index not in dropped:
                dense = cut = passed(stream, layer, dense, called)
            else:
                dense = passed(stream, layer, dense, called)
                if index not in dropped:
                    cut = passed(stream, layer, cut, called)
        if index in ends:
            place = view.numbers.index(run.before)
            changed = run.fold(dense, len(first))
            folded.tensors |= {view.block_name(place, n): t for n, t in changed.items()}
            folded.record.append(run.record | {"tensors": sorted(changed)})
            if index + 1 < end:
                cut = run.leave(changed)
        progress(index + 1, end)
        trim_heap()
    return folded
