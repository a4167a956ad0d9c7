"""The repair of one block of a model with fewer channels in its residual stream, on two paths.

Of a block that reads the stream through norms, let z be what they give in the dense model, x what they
give in the narrower one so far. In every block, in the order of the computation:

1. R = argmin sum over tokens of |R x - z|^2, drawn toward the choice of the channels that stay, goes
   into q, k and v: W' = W R. So these read of the stream that is left what the whole one would have
   told them, and how much larger or smaller norms over fewer channels make it.
2. What `o_proj` gives is computed in all channels, g, and mapped on those that stay:
   T = argmin sum of |x + T g - y|^2 / (mean square of the dense stream), y what stays of the dense
   stream after the attention, x the narrower one before it; W' = T W. Where a norm follows `o_proj`,
   its weight takes a factor a channel instead (`solvers/diagonal.py`).
3., 4. The same for what the FFN reads, and what it adds.

A lambda each, chosen on held-back sequences as in `streaming.py`. `refine` then trains the block's
matrices toward what stays of the dense stream after it. Experts give what stays alone, so that g and T
are of these channels. Ours.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from compressor.model.activations import Activations
from compressor.model.fewer_channels import FewerChannels
from compressor.model.layers import added, narrowed, norm_of, passed
from compressor.model.modules import assign
from compressor.repairing.fitting import BlockFit, Task
from compressor.repairing.refine import WHOLE, Example, refine
from compressor.solvers.diagonal import scale
from compressor.solvers.ridge import GRID, Pairs, rates, wide


class ChannelFit(BlockFit):
    """What is done to one block: `run`. narrow: as the view of the source has it, but that `o_proj`, and
    `down_proj` where it is one module, write in all channels until they are fitted.
    """

    def __init__(self, task: Task, index: int, layer: nn.Module, calls: list[tuple[tuple, dict]]):
        stream, source = task.stream, task.stream.checkpoint
        self.source, whole = source, source.whole.read_block(index)
        stored = source.read_block(index)
        self.base = {
            name: stored[name] if group == "ffn" and source.family.experts else whole[name]
            for group in source.family.groups()
            for name in source.writers(index, group)
        }
        self.read_by = {n: t for n, t in whole.items() if n not in self.base}
        stored |= self.base
        groups = range(source.block_units[index]["attention"])
        narrow = narrowed(stream.layers[index], stream.cast(stored), source.family, groups)
        super().__init__(task, index, layer, narrow, stored, calls)

    def kept(self, states: torch.Tensor) -> torch.Tensor:
        return wide(states[..., self.source.places.to(states.device)])

    def run(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        """Both paths' streams before the block become those after it."""
        middle, dense_out, given, after = (Activations(self.task.stream.place) for _ in range(4))
        self.read("attention", dense, cut)
        for i, (args, call) in enumerate(self.calls):
            entering = dense.get(i, self.device)
            outputs = self.reference(entering, args, call)
            middle.put(i, entering + self.normed("attention", outputs["attention"]))
            dense_out.put(i, outputs["out"])
            heads = self.heads(cut.get(i, self.device), args, call)
            given.put(i, self.output("attention")(heads))
        for i, x in enumerate(self.write("attention", given, cut, middle)):
            after.put(i, x)
        parallel = self.task.geometry.parallel
        dense_read, cut_read = (dense, cut) if parallel else (middle, after)
        self.read("ffn", dense_read, cut_read)
        for i in range(len(self.calls)):
            given.put(i, self.ffn(self.narrow, cut_read.get(i, self.device)))
        for _ in self.write("ffn", given, after, dense_out):
            pass
        if self.task.kind.refined:
            self.refine(cut, dense_out)
        for states in (middle, given, after, dense):
            states.discard()
        return dense_out, passed(self.task.stream, self.narrow, cut, self.calls)

    def resume(
        self, changed: dict[str, torch.Tensor], steps: dict, dense: Activations, cut: Activations
    ) -> tuple[Activations, Activations]:
        """As `run`, by what a former one has left in `changed` and `record`."""
        self.changed, self.record = changed, steps
        assign(self.narrow, self.task.stream.cast(changed))
        stream = self.task.stream
        return tuple(
            passed(stream, layer, states, self.calls)
            for layer, states in ((self.layer, dense), (self.narrow, cut))
        )

    def read(self, group: str, dense: Activations, cut: Activations) -> None:
        """Fit what reads the stream for a group."""
        ours, theirs = (norm_of(layer, self.family, group) for layer in (self.narrow, self.layer))
        normed = any(True for _ in theirs.parameters())

        def pairs() -> Pairs:
            for i in range(len(self.calls)):
                x, z = ours(cut.get(i, self.device)), theirs(dense.get(i, self.device))
                rate = 1.0 if normed else rates(z)
                yield wide(x) * rate, wide(z) * rate

        step = f"{group} inputs"
        new = self.regress(step, pairs(), selection(self.source, self.device))
        if new is not None:
            names = self.source.readers(self.index, group)
            self.replace(step, {n: self.read_by[n].to(new) @ new for n in names})

    def write(
        self, group: str, given: Activations, before: Activations, dense: Activations
    ) -> Iterator[torch.Tensor]:
        """Fit what a group adds to the stream `before` it; of every batch the stream after it."""
        names = self.source.writers(self.index, group)
        new = selection(self.source, self.device).T
        if group == "ffn" and self.family.experts:
            new = torch.eye(len(new), device=self.device)
        many, bias = new.shape[1], any(name.endswith(".bias") for name in names)
        if bias:
            new = torch.cat((new, new.new_zeros(len(new), 1)), 1)
        norm = self.family.post_norms.get(group)

        def made(i: int, new: torch.Tensor) -> torch.Tensor:
            """What is added to the stream of what was given in all channels."""
            out = wide(given.get(i, self.device)) @ new[:, :many].T
            out = (out + new[:, many] if bias else out).to(self.task.stream.dtype)
            return added(self.narrow, self.family, group, out).view_as(before.get(i, self.device))

        def pairs() -> Pairs:
            for i in range(len(self.calls)):
                y = dense.get(i, self.device)
                aim, rate = self.kept(y) - wide(before.get(i, self.device)), rates(y)
                if norm:
                    yield wide(made(i, new)) * rate, aim * rate
                else:
                    x = wide(given.get(i, self.device)).view(*aim.shape[:-1], -1)
                    x = torch.cat((x, torch.ones_like(x[..., :1])), -1) if bias else x
                    yield x * rate, aim / self.task.geometry.times * rate

        if norm:
            self.scale(group, f"{norm}.weight", pairs())
        else:
            found = self.regress(group, pairs(), new)
            new = new if found is None else found
        tensors = {n: new[:, :many] @ self.base[n].to(new) for n in names}
        for name in (n for n in names if n.endswith(".bias")):
            tensors[name] += new[:, many]
        self.replace(group, tensors)
        return (before.get(i, self.device) + made(i, new) for i in range(len(self.calls)))

    def scale(self, step: str, name: str, pairs: Pairs) -> None:
        """Fit a norm's weight."""
        batches, offset = self.task.batches, self.family.norm_offset
        told = ((b.real(x), b.real(t)) for b, (x, t) in zip(batches, pairs, strict=True))
        factors, outcome = scale(told, self.task.fitted, (0.0, *GRID))
        self.record[step] = outcome or {"lambda": None}
        if factors is not None:
            weight = self.stored[name].to(factors)
            self.replace(step, {name: factors * (weight + offset) - offset})

    def refine(self, cut: Activations, dense_out: Activations) -> None:
        """Train all matrices of the block."""
        groups = self.family.groups()
        names = [n for g in groups for n in self.source.readers(self.index, g)]
        names += [n for n in self.base if not n.endswith(".bias")]

        def example(i: int) -> Example:
            aim = self.kept(dense_out.get(i, self.device))
            hidden, batch = cut.get(i, self.device), self.task.batches[i]
            return Example(hidden, *self.calls[i], aim, batch)

        steps, held = self.task.steps, range(self.task.fitted, len(self.calls))
        schedule = replace(WHOLE, parts=steps.__getitem__, epochs=self.task.epochs or WHOLE.epochs)
        weights = {n: self.stored[n].to(self.device) for n in names}
        weights, outcome = refine(
            self.narrow, weights, example, range(len(steps)), held, schedule=schedule
        )
        self.record["refine"] = outcome.told
        if outcome.after < outcome.losses[0]:
            self.replace("refine", weights)


def selection(source: FewerChannels, device: torch.device) -> torch.Tensor:
    """The channels that stay as a matrix [hidden, kept], float32."""
    return torch.eye(source.whole.hidden_size, device=device)[:, source.places.to(device)]
