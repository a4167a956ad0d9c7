"""The repair of a whole model, one block in memory, on two paths side by side.

One path carries the residual stream of the dense model, the other that of the model as it is cut and
repaired so far. In every block, in the order of the computation:

1. What q, k and v read, the normed stream x of the cut path, is brought nearer to the dense path's z by
   the linear map I + M, M the ridge regression of z - x on x. M is folded into the projections:
   W' = W + W M.
2. `o_proj` is refitted on the inputs that the block then gives it, so that the stream after the
   attention is the dense model's: the target is that stream minus the cut path's stream before it.
   So a block also mends what the blocks before it left broken.
3., 4. The same for gate and up, and for `down_proj`.

The tokens of 2 and 4 count in proportion to 1 / (mean square of the dense stream), because the norm that
reads the stream divides by its root. Every regression has a lambda of its own, chosen on one sequence
in `HELD_BACK` of the calibration text, and is left out where it makes those worse.

Of a source without some of its blocks (`fewer_blocks.py`) the dense path is that of the whole model: the
block before blocks that were dropped is fitted to the stream after them. Of one with fewer channels
(`fewer_channels.py`) it is the whole model's, too, and the blocks are repaired as `channels.py` says.

Where the cut has left a block's attention whole and a training follows, 1 to 3 are left out: they take
two thirds of the closed form's time, and gain 0.1 to 0.4 % of the perplexity (`docs/lab-book.md`).

Ours. That the target is the dense stream, not the sub-layer's former output, and that weights shrink
toward the kept ones, are what sets it apart from refits such as those of SlimGPT or ZipLM.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from compressor.config.repair import KINDS, check_kind
from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.activations import Activations
from compressor.model.beside import Beside
from compressor.model.digest import digest
from compressor.model.layers import narrowed, passed
from compressor.model.memory import drop_pages, trim_heap
from compressor.model.modules import loaded
from compressor.model.ranks import Alone
from compressor.model.saved_blocks import finished_block, keep_block, told_of_block
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.planning.plan import Plan
from compressor.repairing.block import BlockRepair
from compressor.repairing.channels import ChannelRepair
from compressor.repairing.fitting import Task
from compressor.repairing.refine import STEP_TOKENS
from compressor.text.tokens import Batch, TokenSet

HELD_BACK = 16
OF_CHANNELS = ("refine", "ridge", "none")  # kinds of a model with a cut hidden size


def check_text(repair: str, tokens: TokenSet) -> None:
    """Refuse a calibration text of which nothing can be held back."""
    if repair != "none" and len(tokens.sequences) < 2:
        raise InputError(
            f"--repair {repair} holds back a part of the calibration text and needs at least 2 "
            f"sequences, not {len(tokens.sequences)}; raise --samples, or use --repair none."
        )


def check_repair(repair: str, epochs: int | None, checkpoint: Source) -> None:
    """Refuse a kind that there is not, and biases to move where there are none."""
    check_kind(repair, epochs)
    if checkpoint.channels and repair not in OF_CHANNELS:
        raise InputError(
            f"--repair {repair} is for units; where the hidden size is cut, use "
            f"{', '.join(OF_CHANNELS[:-1])} or {OF_CHANNELS[-1]}."
        )
    if repair != "bias":
        return
    if checkpoint.family.experts:
        raise InputError(
            f"--repair bias moves biases of output projections, which the experts of "
            f"{checkpoint.family.model_type} have not; use --repair refine or ridge."
        )
    present = checkpoint.block_tensors(0)
    for group in checkpoint.family.groups():
        bias = checkpoint.family.output(group).replace(".weight", ".bias")
        if bias not in present:
            raise InputError(
                f"--repair bias folds what is lost into {bias}, which {checkpoint.label} does not "
                "have; use --repair ridge."
            )


class Repair:
    """One repair of one plan: iterate over `blocks()`, then read `record` and `warnings`.

    record[block] names the tensors that were changed and their digest, and in `steps` the lambda
    taken (None: the step was left out) and the held-back error before and after it, as a share of
    the target's energy. Steps are `attention` and `ffn` for the output projections, `attention
    inputs` and `ffn inputs` for what their groups read; `refine` says what `refine.Outcome` does, its
    losses relative squared distances, and nats in the last block.

    saved: a folder where finished blocks are kept, and taken from if they are there.

    InputError for fewer than two sequences, and for activations that are not finite.
    """

    def __init__(
        self,
        stream: BlockStream,
        plan: Plan,
        tokens: TokenSet,
        repair: str,
        epochs: int | None = None,
        saved: Path | None = None,
    ):
        plan.check(stream.checkpoint)
        check_repair(repair, epochs, stream.checkpoint)
        check_text(repair, tokens)
        self.stream, self.plan, self.checkpoint = stream, plan, stream.checkpoint
        self.name, self.protocol, self.saved = repair, tokens.protocol, saved
        self.kind, self.epochs, self.text = KINDS[repair], epochs, tokens
        refined = self.kind and self.kind.refined
        self.batch_tokens = STEP_TOKENS if refined else stream.batch_tokens
        self.task = self.divided()
        self.tokens = tokens.split(HELD_BACK)[0].tokens
        self.record: list[dict] = []

    @property
    def device(self) -> torch.device:
        return self.stream.device

    def divided(self) -> Task:
        """What is to be done, so many tokens (`batch_tokens`) at once; a step of a training has as many
        in any case, so where that is more it has parts. Of several ranks each has its share: of a
        training that of every step, so that the steps are those of one process.
        """
        fitted, held = self.text.split(HELD_BACK)
        refined, ranks = self.kind and self.kind.refined, self.stream.ranks
        step = STEP_TOKENS if refined else self.batch_tokens
        if not refined:
            fitted = TokenSet(ranks.share(fitted.sequences))
        batches: list[Batch] = []
        steps, ahead = [], []
        for number, batch in enumerate(fitted.batches(step)):
            mine, before = share(batch, ranks, number) if refined else ([batch], 0)
            parts = [part for each in mine for part in each.parts(self.batch_tokens)]
            steps.append(range(len(batches), len(batches) + len(parts)))
            ahead.append(before)
            batches += parts
        held = TokenSet(ranks.share(held.sequences))
        held_back = [p for batch in held.batches(step) for p in batch.parts(self.batch_tokens)]
        return Task(self.stream, self.kind, [*batches, *held_back], steps, self.epochs, ahead)

    @property
    def about(self) -> dict:
        """What compression.json keeps."""
        about: dict = {"kind": self.name, "calibration": self.protocol, "blocks": self.record}
        about["left_out"] = self.left_out
        if self.task.kind.refined:
            passes = [len(outcome["losses"]) - 1 for _, _, outcome in self.outcomes("losses")]
            about |= {"epochs": max(passes, default=0), "untrained": self.untrained}
        return about

    @property
    def left_out(self) -> list[str]:
        """The refits that would have made the held-back error worse."""
        return [
            f"{step} of block {index}"
            for index, step, outcome in self.outcomes("lambda")
            if outcome["lambda"] is None
        ]

    @property
    def untrained(self) -> list[int]:
        """The blocks that training could not, or would not, make better."""
        return [
            index
            for index, _, outcome in self.outcomes("losses")
            if outcome["after"] == outcome["losses"][0]
        ]

    def outcomes(self, told: str) -> list[tuple[int, str, dict]]:
        """Block, name and outcome of every step so far that tells this."""
        return [
            (index, step, outcome)
            for index, block in enumerate(self.record)
            for step, outcome in block["steps"].items()
            if told in outcome
        ]

    @property
    def warnings(self) -> list[str]:
        """Sentences about what could not be repaired."""
        geometry, widest = BlockGeometry.of(self.checkpoint), self.plan.widest()
        widest["ffn"] //= self.checkpoint.ffn_parts
        channels = max(units * geometry.channels(group) for group, units in widest.items())
        warnings = []
        if self.tokens < channels:
            warnings.append(
                f"The repair has {self.tokens:,} calibration tokens for {channels:,} inputs of a "
                "projection; more --samples would let it do more."
            )
        if self.left_out:
            warnings.append(
                f"Refitting did not lower the held-back error in {len(self.left_out)} of "
                f"{len(self.outcomes('lambda'))} steps; what was cut stays there as it was "
                "(repair.left_out in compression.json)."
            )
        if self.untrained:
            warnings.append(
                f"Training did not pay on held-back text in {len(self.untrained)} of "
                f"{len(self.outcomes('losses'))} blocks; what the closed form made stays there "
                "(repair.untrained in compression.json)."
            )
        return warnings

    def blocks(self) -> Iterator[dict[str, torch.Tensor]]:
        """Of every block in order, the tensors to write in place of the cut ones, as they are stored."""
        with Beside() as beside:
            yield from self.repaired(beside)

    @torch.no_grad()
    def repaired(self, beside: Beside) -> Iterator[dict[str, torch.Tensor]]:
        """As `blocks`; what they are kept by is made beside."""
        stream, checkpoint, whole = self.stream, self.checkpoint, self.stream.whole
        self.task = self.divided()
        self.record.clear()
        ranks = stream.ranks
        batches, narrower = [b.ids for b in self.task.batches], bool(checkpoint.channels)
        dense, calls = whole.record(batches)
        cut = stream.record(batches)[0] if narrower else dense
        for index, (number, weights) in enumerate(whole.weights(checkpoint.numbers)):
            kept = self.plan.blocks[index]
            source = weights if self.exact(index, weights) else checkpoint.read_block(index)
            small = cut_block(source, checkpoint, kept)
            for tensor in source.values():  # what is not cut holds the whole file's mapping
                drop_pages(tensor)
            del source
            table = checkpoint.families[index]
            narrow = narrowed(stream.layers[index], stream.cast(small), table, kept["attention"])
            gone = gap_after(number, checkpoint)
            with loaded(whole.layers[number], weights) as layer:
                del weights
                called = [call[number] for call in calls]
                beyond = partial(through, whole, gone, calls)
                kind = ChannelRepair if narrower else BlockRepair
                block = kind(self.task, index, layer, narrow, small, called, beyond)
                if isinstance(block, ChannelRepair):
                    block.saved = self.saved and self.saved / "outer"
                units = all(len(kept[g]) == n for g, n in checkpoint.block_units[index].items())
                saved = None
                if dense is cut and units and not gone:
                    dense = cut = passed(stream, layer, dense, block.calls)
                elif (known := ranks.told(partial(finished, self.saved, index))) is not None:
                    dense, cut = block.resume(*known, dense, cut)
                else:
                    dense, cut = block.run(dense, cut)
                    saved = self.saved
            self.record.append({"steps": block.record, "tensors": sorted(block.changed)})
            beside.do(keep, saved, index, block.changed, self.record[index])
            yield block.changed
            trim_heap()
        dense.discard()
        cut.discard()

    def exact(self, index: int, weights: dict[str, torch.Tensor]) -> bool:
        """Whether a block's weights in the stream are the bits that are cut, which a fold changes."""
        checkpoint = self.checkpoint
        tensors, name = checkpoint.tensors, checkpoint.block_name
        return checkpoint.whole is checkpoint and all(
            tensors[name(index, n)].dtype == t.dtype for n, t in weights.items()
        )


def share(batch: Batch, ranks: Alone, number: int) -> tuple[list[Batch], int]:
    """A rank's sequences of a step, if it has any, and how many tokens of the step are before them.
    Ranks take turns by the step's number, so that steps of few sequences burden all alike.
    """
    count, place = len(batch.ids), (ranks.rank + number) % ranks.world
    begin, end = (count * edge // ranks.world for edge in (place, place + 1))
    return batch.rows(begin, end), int(batch.mask[:begin].sum())


def finished(folder: Path | None, index: int) -> tuple[dict[str, torch.Tensor], dict] | None:
    """A finished block, and what was told of it."""
    changed = finished_block(folder, index)
    return None if changed is None else (changed, told_of_block(folder, index))


def keep(
    folder: Path | None, index: int, changed: dict[str, torch.Tensor], entry: dict[str, Any]
) -> None:
    """Save a repaired block in `folder`, if any, and add the digest to its entry of the record."""
    keep_block(folder, index, changed, entry["steps"])
    entry["sha256"] = digest(changed)


def gap_after(number: int, checkpoint: Source) -> list[int]:
    """The dropped blocks that follow a block of the whole model, as far as the next one that stays."""
    following = range(number + 1, checkpoint.whole.blocks)
    return [*takewhile(lambda block: block in checkpoint.dropped, following)]


def through(
    stream: BlockStream, blocks: Sequence[int], calls: list[list[tuple]], states: Activations
) -> Activations:
    """The stream after these blocks, in place of that before them."""
    for number, weights in stream.weights(blocks):
        with loaded(stream.layers[number], weights) as layer:
            states = passed(stream, layer, states, [call[number] for call in calls])
    return states
