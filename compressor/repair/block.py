"""The repair of one block on two paths; `streaming.py` says what is done and why."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from compressor.blocks import Activations, BlockStream, assign, replaced_forward, states_of
from compressor.calibration import Batch
from compressor.errors import InputError
from compressor.families import Family
from compressor.methods.statistics import Geometry
from compressor.repair import Kind
from compressor.repair.refine import Example, divergence, refine, relative_distance
from compressor.repair.ridge import Moments, ridge

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
BIAS_GRID = (0.0, *GRID)  # one input, always well-conditioned: what is constant is folded exactly

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Task:
    """What the repairs of all blocks share; batches from number `fitted` on are held back. epochs: of
    training, where the kind has any.
    """

    stream: BlockStream
    geometry: Geometry
    kind: Kind
    batches: list[Batch]
    fitted: int
    epochs: int


class BlockRepair:
    """The steps of one block.

    layer: the block with its dense weights; narrow: the same with the cut ones, which are replaced
    step by step; stored: the cut weights as the checkpoint stores them; calls: what the block is
    called with besides the hidden states, for every batch.

    Afterwards `changed` holds the new tensors, and `record` the lambda (None: the step was left out) and
    the held-back error before and after every step that had anything to repair.
    """

    def __init__(self, task: Task, index: int, layer, narrow, stored, calls: list[tuple]):
        self.task, self.index, self.calls = task, index, calls
        self.layer, self.narrow, self.stored = layer, narrow, stored
        self.device, self.family = task.stream.device, task.geometry.family
        self.toward_dense = task.kind.toward == "dense"
        self.changed: dict[str, torch.Tensor] = {}
        self.record: dict[str, dict] = {}

    def run(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        """Repair the block; both paths' streams before it become those after it."""
        files = self.task.stream.offload
        dense_after, cut_after, dense_out, cut_out, heads, dense_ffn = (
            Activations(files) for _ in range(6)
        )
        batches = range(len(self.calls))

        self.correct("attention", self.family.attention_norm, dense, cut)

        def attention() -> Pairs:
            for i, (args, call) in enumerate(self.calls):
                x = cut.get(i, self.device)
                given = dense.get(i, self.device) if self.toward_dense else x
                found = self.reference(given, args, call)
                after = given + self.normed("attention", found["attention"])
                dense_after.put(i, after)
                dense_out.put(i, found["out"])
                if "ffn" in self.family.post_norms:
                    dense_ffn.put(i, found["ffn"])
                inputs = self.heads(x, args, call)
                heads.put(i, inputs)
                yield self.weighed("attention", inputs, x, after, found["attention"])

        self.refit("attention", attention())
        project = self.output("attention")
        for i in batches:
            added = self.normed("attention", project(heads.get(i, self.device)))
            cut_after.put(i, cut.get(i, self.device) + added)
        heads.discard()

        parallel, normed = self.task.geometry.parallel, "ffn" in self.family.post_norms
        dense_read, cut_read = (dense, cut) if parallel else (dense_after, cut_after)
        self.correct("ffn", self.family.ffn_norm, dense_read, cut_read)
        dense_after.discard()

        def ffn() -> Pairs:
            for i in batches:
                x, read = cut_after.get(i, self.device), cut_read.get(i, self.device)
                inputs = captured(self.output("ffn"), lambda read=read: self.ffn(self.narrow, read))
                if self.toward_dense:
                    out = dense_out.get(i, self.device)
                    given = dense_ffn.get(i, self.device) if normed else None
                else:
                    given = self.ffn(self.layer, read)
                    out = x + self.normed("ffn", given)
                yield self.weighed("ffn", inputs, x, out, given)

        self.refit("ffn", ffn())
        cut_after.discard()
        dense_ffn.discard()
        if self.task.kind.refined:
            self.refine(cut, dense_out)
        for i, (args, call) in enumerate(self.calls):
            cut_out.put(i, states_of(self.narrow(cut.get(i, self.device), *args, **call)))
        dense.discard()
        cut.discard()
        return dense_out, cut_out

    def refine(self, cut: Activations, dense_out: Activations) -> None:
        """Train all projections of the block toward the dense block's output."""
        present = self.stored | self.changed

        def example(i: int) -> Example:
            hidden, target = (states.get(i, self.device) for states in (cut, dense_out))
            mask = self.task.batches[i].mask.to(self.device)
            return Example(hidden, *self.calls[i], target, mask)

        stream = self.task.stream
        last = self.index == stream.checkpoint.blocks - 1
        with stream.outer(head=True) if last else nullcontext() as model:

            def predictions(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                rows = (x.to(stream.dtype) for x in (out, target))
                return divergence(*(stream.head(model, x) for x in rows))

            found, losses = refine(
                self.narrow,
                {n: present[n].to(self.device) for n in self.family.projections()},
                example,
                range(self.task.fitted),
                range(self.task.fitted, len(self.calls)),
                predictions if last else relative_distance,
                epochs=self.task.epochs,
            )
        self.record["refine"] = {"losses": losses}
        if min(losses) < losses[0]:
            self.replace("refine", found)

    def passed_on(self, states: Activations) -> Activations:
        """The stream after a block that nothing was cut from, nor from those before it."""
        out = Activations(self.task.stream.offload)
        for i, (args, call) in enumerate(self.calls):
            out.put(i, states_of(self.layer(states.get(i, self.device), *args, **call)))
        states.discard()
        return out

    # -- the parts of a block ---------------------------------------------------------------------

    def output(self, group: str) -> nn.Linear:
        return self.narrow.get_submodule(self.task.geometry.output_module(group))

    def ffn(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What the FFN makes of the stream x."""
        return self.family.feed_forward(layer, layer.get_submodule(self.family.ffn_norm)(x))

    def normed(self, group: str, given: torch.Tensor) -> torch.Tensor:
        """What is added to the stream of what the output projection of a group gives."""
        norm = self.family.post_norms.get(group)
        return self.layer.get_submodule(norm)(given) if norm else given

    def reference(self, hidden, args, call) -> dict[str, torch.Tensor]:
        """Of the dense block what both output projections give, and the stream after it."""
        seen = {}
        handles = [
            self.layer.get_submodule(self.task.geometry.output_module(group)).register_forward_hook(
                lambda _, args, out, group=group: seen.update({group: out})
            )
            for group in self.family.groups()
        ]
        try:
            seen["out"] = states_of(self.layer(hidden, *args, **call))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def heads(self, hidden, args, call) -> torch.Tensor:
        """The input of the cut block's o_proj."""
        return captured(self.output("attention"), lambda: self.narrow(hidden, *args, **call))

    # -- the regressions --------------------------------------------------------------------------

    def weighed(
        self, group: str, inputs, before, after, given
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the refitted parameters, with every token's weight in them.

        The stream `before` should become the stream `after`. Where a norm stands between, what the
        projection gives should be what the dense block's gave, and its errors count as that norm
        passes them on. A bias is the weight of an input that is always one.
        """
        module = self.output(group)
        rate = rates(after)
        if group in self.family.post_norms:
            targets, rate = given.float(), rate * rates(given)
        else:
            targets = after.float() - before.float()
        if module.bias is not None:
            one = torch.ones_like(inputs[..., :1])
            if self.task.kind.weights:
                inputs = torch.cat((inputs, one), -1)
            else:
                targets, inputs = targets - nn.functional.linear(inputs, module.weight).float(), one
        return inputs.float() * rate, targets * rate

    def refit(self, group: str, pairs: Pairs) -> None:
        """Fit the output projection of a group to the targets."""
        name = self.family.output(group)
        bias = name.replace(".weight", ".bias")
        parameters = {name: self.stored[name]} if self.task.kind.weights else {}
        if bias in self.stored:
            parameters[bias] = self.stored[bias][:, None]
        present = torch.cat([p.float() for p in parameters.values()], 1).to(self.device)
        found = self.regress(group, pairs, present)
        if found is not None:
            parts = found.split([p.shape[1] for p in parameters.values()], 1)
            self.replace(
                group,
                {n: p.view(self.stored[n].shape) for n, p in zip(parameters, parts, strict=True)},
            )

    def correct(self, group: str, norm: str, dense: Activations, cut: Activations) -> None:
        """Fold into the projections that read the normed stream the map toward the dense one."""
        if self.task.kind.toward != "dense" or not self.task.kind.weights or dense is cut:
            return
        size = self.task.stream.checkpoint.hidden_size
        read = self.narrow.get_submodule(norm)

        def pairs() -> Pairs:
            for i in range(len(self.calls)):
                x = read(cut.get(i, self.device)).float()
                yield x, read(dense.get(i, self.device)).float() - x

        found = self.regress(
            f"{group} inputs", pairs(), torch.zeros(size, size, device=self.device)
        )
        if found is None:
            return
        names = [
            part.tensor
            for part in self.family.groups()[group]
            if part.axis == 0 and part.tensor.endswith(".weight")
        ]
        weights = {n: self.stored[n].to(self.device).float() for n in names}
        self.replace(f"{group} inputs", {n: w + w @ found for n, w in weights.items()})

    def regress(self, step: str, pairs: Pairs, present: torch.Tensor) -> torch.Tensor | None:
        """New parameters [outputs, channels], or None where the present ones are no worse."""
        outputs, channels = present.shape
        half = self.task.stream.dtype == torch.bfloat16
        dtype = torch.bfloat16 if half else torch.float32
        fit, held = (Moments.empty(channels, outputs, self.device, dtype) for _ in range(2))
        for i, (inputs, targets) in enumerate(pairs):
            real = self.task.batches[i].mask.to(self.device)
            (fit if i < self.task.fitted else held).add(inputs[real], targets[real])
        if not all(torch.isfinite(t).all() for t in (fit.gram, fit.cross, held.gram, held.cross)):
            raise InputError(
                f"The activations of block {self.index} ({step}) are not finite; "
                "try --dtype float32."
            )
        grid = GRID if self.task.kind.weights else BIAS_GRID
        new, taken, errors = ridge(
            fit.gram, fit.cross, present, held.gram, held.cross, held.energy, grid
        )
        if len(errors) == 1:
            return None
        before, after = errors[0], errors[0 if taken is None else 1 + grid.index(taken)]
        shares = {"before": before / held.energy.item(), "after": after / held.energy.item()}
        self.record[step] = {"lambda": taken} | shares
        return None if taken is None else new

    def replace(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        """Put new tensors in the place of the cut ones, rounded as they are stored."""
        rounded = {n: t.to(self.stored[n].dtype) for n, t in tensors.items()}
        if not all(t.isfinite().all() for t in rounded.values()):
            self.record[step] |= {"lambda": None, "after": self.record[step]["before"]}
            return
        self.changed |= {n: t.cpu() for n, t in rounded.items()}
        assign(self.narrow, self.task.stream.cast(rounded))


class Captured(Exception):
    """Carries what a module was given out of the forward it stands in."""


def captured(module: nn.Module, run) -> torch.Tensor:
    """What `module` is given while run() runs, which ends there."""

    def take(_, x):
        raise Captured(x)

    with replaced_forward([module], take):
        try:
            run()
        except Captured as found:
            return found.args[0]
    raise AssertionError(f"{type(module).__name__} was not called")


def rates(stream: torch.Tensor) -> torch.Tensor:
    """1 / root mean square of every token [tokens, 1], in float32 or better."""
    return wide(stream).square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrowed(
    layer: nn.Module, tensors: dict[str, torch.Tensor], family: Family, groups: Sequence[int]
) -> nn.Module:
    """A copy of an empty layer with a cut block's tensors, those of these KV groups."""
    copied = copy.deepcopy(layer)
    assign(copied, tensors)
    family.fit(copied, groups)
    return copied
