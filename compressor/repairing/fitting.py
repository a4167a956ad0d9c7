"""The closed form of one block's repair, step by step; `block.py` says in which order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from compressor.config.repair import Kind
from compressor.model.activations import Activations, states_of
from compressor.model.groups import GROUPS
from compressor.model.layers import added, captured, ffn_of, norm_of
from compressor.model.modules import assign
from compressor.model.observing import observed
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.solvers.ridge import GRID, Pairs, rates, regress, summed_in
from compressor.text.tokens import Batch

BIAS_GRID = (0.0, *GRID)  # one input, always well-conditioned: what is constant is folded exactly


@dataclass(frozen=True)
class Task:
    """What the repairs of all blocks share; batches from number `fitted` on are held back. steps: of a
    training, the batches that each has. epochs: of training, where the kind has any (None: as many as
    are worth their time). ahead: of every step, how many of its tokens other ranks have before this
    one's.
    """

    stream: BlockStream
    kind: Kind
    batches: list[Batch]
    steps: list[range]
    epochs: int | None
    ahead: list[int]

    @property
    def fitted(self) -> int:
        return self.steps[-1].stop


class BlockFit:
    """What is done to one block.

    layer: the block with its dense weights; narrow: the same with the cut ones; stored: these as the
    checkpoint stores them; both are replaced step by step. calls: what the block is called with besides
    the hidden states, for every batch. beyond: passes the dense stream after the block, if blocks that
    were dropped follow it, on through them: what is after these is aimed at.

    Afterwards `changed` holds the new tensors, and `record` the lambda (None: the step was left out) and
    the held-back error before and after every step that had anything to repair.
    """

    def __init__(
        self,
        task: Task,
        index: int,
        layer,
        narrow,
        stored,
        calls: list[tuple[tuple, dict]],
        beyond: Callable[[Activations], Activations] = lambda states: states,
    ):
        self.task, self.index, self.calls, self.beyond = task, index, calls, beyond
        self.layer, self.narrow, self.stored = layer, narrow, stored
        self.geometry = BlockGeometry.of(task.stream.checkpoint, index)
        self.device, self.family = task.stream.device, self.geometry.family
        self.toward_dense = task.kind.toward == "dense"
        self.changed: dict[str, torch.Tensor] = {}
        self.record: dict[str, dict] = {}

    def output(self, group: str) -> nn.Linear:
        return self.narrow.get_submodule(self.geometry.output_module(group))

    def ffn(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return ffn_of(layer, self.family, x)

    def normed(self, group: str, projected: torch.Tensor) -> torch.Tensor:
        return added(self.layer, self.family, group, projected)

    def reference(self, hidden, args, call) -> dict[str, torch.Tensor]:
        """Of the dense block what its output projections give, and the stream after it (`out`)."""
        outputs: dict[str, torch.Tensor] = {}

        def keep(what: str, _, output: torch.Tensor | tuple) -> None:
            outputs[what] = states_of(output)

        groups = ["attention"] if self.family.experts else GROUPS
        names = {self.geometry.output_module(g): g for g in groups} | {"": "out"}
        with observed(self.layer, passed={n: partial(keep, what) for n, what in names.items()}):
            self.layer(hidden, *args, **call)
        return outputs

    def heads(self, hidden, args, call) -> torch.Tensor:
        """The input of the cut block's o_proj."""
        return captured(self.output("attention"), lambda: self.narrow(hidden, *args, **call))

    def weighed(
        self, group: str, inputs, before, after, projected
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the refitted parameters, with every token's weight in them.

        The stream `before` should become the stream `after`. Where a norm stands between, what the
        projection gives should be what the dense block's gave, and its errors count as that norm
        passes them on. A bias is the weight of an input that is always one.
        """
        module = self.output(group)
        rate = rates(after)
        if group in self.family.post_norms:
            targets, rate = projected.float(), rate * rates(projected)
        else:
            targets = (after.float() - before.float()).div_(self.geometry.times)
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
        new = self.regress(group, pairs, present)
        if new is not None:
            parts = new.split([p.shape[1] for p in parameters.values()], 1)
            self.replace(
                group,
                {n: p.view(self.stored[n].shape) for n, p in zip(parameters, parts, strict=True)},
            )

    def correct(self, group: str, dense: Activations, cut: Activations) -> None:
        """Fold into the projections that read the normed stream the map toward the dense one."""
        if self.task.kind.toward != "dense" or not self.task.kind.weights or dense is cut:
            return
        size = self.task.stream.checkpoint.hidden_size
        read = norm_of(self.narrow, self.family, group)

        def pairs() -> Pairs:
            for i in range(len(self.calls)):
                x = read(cut.get(i, self.device)).float()
                yield x, read(dense.get(i, self.device)).float() - x

        change = self.regress(
            f"{group} inputs", pairs(), torch.zeros(size, size, device=self.device)
        )
        if change is None:
            return
        folded = {}
        for part in self.family.groups()[group]:
            if part.axis == 0 and part.tensor.endswith(".weight"):
                weight = self.stored[part.tensor].to(self.device).float()
                folded[part.tensor] = weight + weight @ change
        self.replace(f"{group} inputs", folded)

    def regress(self, step: str, pairs: Pairs, present: torch.Tensor) -> torch.Tensor | None:
        """New parameters [outputs, channels], or None where the present ones are no worse."""
        batches = self.task.batches
        new, outcome = regress(
            ((b.real(x), b.real(t)) for b, (x, t) in zip(batches, pairs, strict=True)),
            self.task.fitted,
            present,
            summed_in(self.task.stream.dtype),
            GRID if self.task.kind.weights else BIAS_GRID,
            f"block {self.index} ({step})",
            self.task.stream.ranks,
        )
        if outcome is not None:
            self.record[step] = outcome
        return new

    def replace(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        """Put new tensors in the place of the cut ones, rounded as they are stored."""
        rounded = {n: t.to(self.stored[n].dtype) for n, t in tensors.items()}
        if not all(t.isfinite().all() for t in rounded.values()):
            outcome = self.record[step]
            outcome["lambda"] = None
            if "before" in outcome:
                outcome["after"] = outcome["before"]
            return
        self.changed |= {n: t.cpu() for n, t in rounded.items()}
        self.stored |= {n: t.to(self.stored[n].device) for n, t in rounded.items()}
        assign(self.narrow, self.task.stream.cast(rounded))
