"""The repair of one block on two paths; `streaming.py` says what is done and why."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from compressor.model.activations import Activations, states_of
from compressor.model.layers import captured, passed, second_half, trained_of_ffn
from compressor.model.memory import drop_pages, trim_heap
from compressor.model.modules import assign
from compressor.repairing.experts import ExpertFit
from compressor.repairing.fitting import BlockFit
from compressor.repairing.losses import Loss, looked_at, predictions, relative_distance
from compressor.repairing.refine import FFN_ALONE, WHOLE, Example, refine
from compressor.solvers.ridge import Pairs

# Of a batch the hidden states and the other arguments that a block is called with.
Called = Callable[[int], tuple[torch.Tensor, tuple, dict]]


class BlockRepair(BlockFit):
    """The whole of it, in order: `run`, or `resume` where it was done before."""

    @property
    def ffn_alone(self) -> bool:
        """Whether the FFN alone is mended: the cut has left the attention as it was, and training
        follows, beside which the other refits gain little and take longest. Or its units are experts, or
        one of the two is of another kind than in other blocks.
        """
        alone = self.task.kind.refined and all(
            self.narrow.get_parameter(n).shape == self.layer.get_parameter(n).shape
            for n in self.family.projections("attention")
        )
        return alone or self.family.experts is not None or bool(self.family.whole)

    @property
    def trained(self) -> list[str]:
        """What a training moves."""
        return trained_of_ffn(self.family) if self.ffn_alone else self.family.projections()

    @property
    def last(self) -> bool:
        return self.index == self.task.stream.checkpoint.blocks - 1

    def run(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        """Repair the block; both paths' streams before it become those after it."""
        return (self.mend_ffn if self.ffn_alone else self.mend_all)(dense, cut)

    def mend_ffn(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        """Refit `down_proj`, of every expert where there are any, and train the FFN."""
        dense_out, cut_after, dense_ffn = self.streams(3)
        cut_read = cut if self.geometry.parallel else cut_after
        for i, (args, call) in enumerate(self.calls):
            entering, x = dense.get(i, self.device), cut.get(i, self.device)
            self.keep_out(i, self.reference(entering, args, call), dense_out, dense_ffn)
            cut_after.put(i, self.attended(i, x))
            for states in (dense, cut):  # two of these streams are in memory, not four
                if states is not cut_read:
                    states.drop(i)
        dense_out = self.beyond(dense_out)
        self.refit_ffn(cut_after, cut_read, dense_out, dense_ffn)
        dense_ffn.discard()

        def called(i: int) -> tuple[torch.Tensor, tuple, dict]:
            return cut_after.get(i, self.device), (cut_read.get(i, self.device),), {}

        if self.task.kind.refined:
            with second_half(self.narrow, self.family):
                self.refine(called, dense_out)
        self.fed_forward(cut_read, cut_after)
        dense.discard()
        cut.discard()
        return dense_out, cut_after

    def attended(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The stream x of a batch after the attention of the cut block."""
        args, call = self.calls[i]
        heads = self.heads(x, args, call)
        return x + self.normed("attention", self.output("attention")(heads))

    def fed_forward(self, read: Activations, after: Activations) -> None:
        """The stream after the cut block, in place of that `after` its attention."""
        with second_half(self.narrow, self.family):
            for i in range(len(self.calls)):
                x, seen = (states.get(i, self.device) for states in (after, read))
                after.put(i, self.narrow(x, seen))

    def mend_all(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        """Refit both output projections, correct what their groups read, and train all projections."""
        dense_after, dense_out, dense_ffn, heads, cut_after = self.streams(5)
        self.correct("attention", dense, cut)

        def attention() -> Pairs:
            for i, (args, call) in enumerate(self.calls):
                x = cut.get(i, self.device)
                hidden = dense.get(i, self.device) if self.toward_dense else x
                outputs = self.reference(hidden, args, call)
                after = hidden + self.normed("attention", outputs["attention"])
                dense_after.put(i, after)
                self.keep_out(i, outputs, dense_out, dense_ffn)
                inputs = self.heads(x, args, call)
                heads.put(i, inputs)
                yield self.weighed("attention", inputs, x, after, outputs["attention"])

        self.refit("attention", attention())
        project = self.output("attention")
        for i in range(len(self.calls)):
            added = self.normed("attention", project(heads.get(i, self.device)))
            cut_after.put(i, cut.get(i, self.device) + added)
        heads.discard()

        parallel = self.geometry.parallel
        dense_read, cut_read = (dense, cut) if parallel else (dense_after, cut_after)
        self.correct("ffn", dense_read, cut_read)
        dense_after.discard()
        dense_out = self.beyond(dense_out)
        self.refit_ffn(cut_after, cut_read, dense_out, dense_ffn)
        dense_ffn.discard()
        cut_after.discard()
        if self.task.kind.refined:
            self.refine(lambda i: (cut.get(i, self.device), *self.calls[i]), dense_out)
        cut_out = passed(self.task.stream, self.narrow, cut, self.calls)
        dense.discard()
        return dense_out, cut_out

    def streams(self, count: int) -> Iterator[Activations]:
        return (Activations(self.task.stream.place) for _ in range(count))

    def keep_out(self, i: int, outputs: dict, out: Activations, ffn: Activations) -> None:
        """Keep what the dense block gives, and of its FFN what a norm reads."""
        out.put(i, outputs["out"])
        if "ffn" in self.family.post_norms:
            ffn.put(i, outputs["ffn"])

    def refit_ffn(
        self, after: Activations, read: Activations, dense_out: Activations, dense_ffn: Activations
    ) -> None:
        """Refit `down_proj`, of every expert where there are any."""
        if self.family.experts:
            ExpertFit(self, after, read, dense_out).run()
        else:
            self.refit("ffn", self.ffn_pairs(after, read, dense_out, dense_ffn))

    def ffn_pairs(
        self, after: Activations, read: Activations, dense_out: Activations, dense_ffn: Activations
    ) -> Pairs:
        """Inputs and targets of `down_proj`: the cut path's stream is `after` the attention, and `read`
        by the FFN's norm.
        """
        for i in range(len(self.calls)):
            x, seen = (states.get(i, self.device) for states in (after, read))
            inputs = captured(self.output("ffn"), partial(self.ffn, self.narrow, seen))
            if self.toward_dense:
                out = dense_out.get(i, self.device)
                normed = "ffn" in self.family.post_norms
                projected = dense_ffn.get(i, self.device) if normed else None
            else:
                projected = self.ffn(self.layer, seen)
                out = x + self.normed("ffn", projected)
            yield self.weighed("ffn", inputs, x, out, projected)

    def resume(
        self, changed: dict[str, torch.Tensor], steps: dict, dense: Activations, cut: Activations
    ) -> tuple[Activations, Activations]:
        """As `run`, by what a former one has left in `changed` and `record`; to the last bit."""
        self.changed, self.record = changed, steps
        assign(self.narrow, self.task.stream.cast(changed))
        dense_out, cut_out = self.streams(2)
        alone = self.ffn_alone
        for i, (args, call) in enumerate(self.calls):
            dense_out.put(i, states_of(self.layer(dense.get(i, self.device), *args, **call)))
            x = cut.get(i, self.device)
            out = self.attended(i, x) if alone else states_of(self.narrow(x, *args, **call))
            cut_out.put(i, out)
        dense_out = self.beyond(dense_out)
        if alone:
            self.fed_forward(cut if self.geometry.parallel else cut_out, cut_out)
        dense.discard()
        cut.discard()
        return dense_out, cut_out

    def refine(self, called: Called, dense_out: Activations) -> None:
        """Train toward the dense block's output.

        called: how `narrow` is, which is the whole block, or its second half where the FFN alone is
        trained.
        """
        for parameter in self.layer.parameters():  # the dense block itself is not read again
            drop_pages(parameter)
        trim_heap()

        def example(i: int) -> Example:
            return Example(*called(i), dense_out.get(i, self.device), self.task.batches[i])

        stream, last = self.task.stream, self.last
        schedule = FFN_ALONE if self.ffn_alone and not last else WHOLE
        every = looked_at(stream, self.narrow) if last else 1
        steps, epochs = self.task.steps, self.task.epochs or schedule.epochs
        schedule = replace(schedule, epochs=epochs, every=every, parts=steps.__getitem__)
        schedule = replace(schedule, ranks=stream.ranks, ahead=self.task.ahead.__getitem__)
        with self.loss() as measure:
            weights, outcome = refine(
                self.narrow,
                {n: self.stored[n].to(self.device) for n in self.trained},
                example,
                range(len(steps)),
                range(self.task.fitted, len(self.calls)),
                measure,
                schedule,
            )
        self.record["refine"] = outcome.told
        if outcome.after < outcome.losses[0]:
            stream.ranks.same(*weights.values())
            self.replace("refine", weights)

    def loss(self) -> AbstractContextManager[Loss]:
        """What the training lowers: in the last block how far predictions are from the dense model's."""
        return self.predicting() if self.last else nullcontext(relative_distance)

    @contextmanager
    def predicting(self) -> Iterator[Loss]:
        """How far the predictions of a stream after the last block are from the dense model's."""
        stream = self.task.stream
        with stream.outer(head=True) as model:
            yield predictions(stream, model)
