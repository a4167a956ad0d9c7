"""The repair of a model with fewer channels in its residual stream, one block in memory, on two paths.

Of a block that reads the stream through norms, let z be what they give in the dense model, x what they
give in the narrower one so far. In every block, in the order of the computation:

1. R = argmin sum over tokens of |R x - z|^2, drawn toward the choice of the channels that stay, goes into
   q, k and v: W' = W R. So these read of the stream that is left what the whole one would have told them,
   and how much larger or smaller norms over fewer channels make it.
2. What `o_proj` gives is computed in all channels, g, and mapped on those that stay:
   T = argmin sum of |x + T g - y|^2 / (mean square of the dense stream), y what stays of the dense stream
   after the attention, x the narrower one before it; W' = T W. Where a norm follows `o_proj`, its weight
   takes a factor a channel instead (`solvers/diagonal.py`).
3., 4. The same for what the FFN reads, and what it adds.

After the last block the head reads by such an R, too; one that is the embedding cannot, and there the
norm before it takes a factor a channel, by which the logits come nearest to the dense ones:

    d = argmin sum over tokens of |E (d x) - F z|^2,   E and F the embedding's kept channels, and all.

A lambda each, chosen on held-back sequences as in `streaming.py`. `refine` then trains the block's
matrices toward what stays of the dense stream after it. Experts give what stays alone, so that g and T
are of these channels. Ours.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from compressor.model.activations import Activations
from compressor.model.beside import Beside
from compressor.model.fewer_channels import FewerChannels
from compressor.model.layers import added, narrowed, norm_of, passed
from compressor.model.memory import trim_heap
from compressor.model.modules import assign, loaded
from compressor.model.saved_blocks import finished_block, told_of_block
from compressor.repairing.fitting import BlockFit, Task
from compressor.repairing.refine import WHOLE, Example, refine
from compressor.repairing.streaming import Repair, keep
from compressor.solvers.diagonal import scale
from compressor.solvers.ridge import GRID, Moments, Pairs, rates, regress, ridge, summed_in, wide

ROWS = 4096  # of a head that are refitted at once


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


class HiddenRepair(Repair):
    """`Repair` of a view of the source with fewer channels; the plan keeps all units.

    What lies outside the blocks is fitted last, and is then in `outer` of the view.
    """

    checkpoint: FewerChannels

    @torch.no_grad()
    def repaired(self, beside: Beside) -> Iterator[dict[str, torch.Tensor]]:
        stream, whole = self.stream, self.stream.whole
        self.task = self.divided()
        self.record.clear()
        ids = [batch.ids for batch in self.task.batches]
        (dense, calls), (cut, _) = whole.record(ids), stream.record(ids)
        for index, weights in whole.weights():
            with loaded(whole.layers[index], weights) as layer:
                del weights
                block = ChannelFit(self.task, index, layer, [call[index] for call in calls])
                if (changed := finished_block(self.saved, index)) is not None:
                    steps, saved = told_of_block(self.saved, index), None
                    dense, cut = block.resume(changed, steps, dense, cut)
                else:
                    dense, cut = block.run(dense, cut)
                    saved = self.saved
            self.record.append({"steps": block.record, "tensors": sorted(block.changed)})
            beside.do(keep, saved, index, block.changed, self.record[index])
            yield block.changed
            trim_heap()
        self.checkpoint.outer = self.outer(dense, cut)
        dense.discard()
        cut.discard()

    def outer(self, dense: Activations, cut: Activations) -> dict[str, torch.Tensor]:
        """The head, or the norm before it, fitted to the streams after the last block."""
        source, stream, task = self.checkpoint, self.stream, self.task
        module = source.last_norm.removesuffix(".weight")

        def pairs() -> Pairs:
            with stream.outer(head=False) as ours, stream.whole.outer(head=False) as theirs:
                norms = ours.get_submodule(module), theirs.get_submodule(module)
                for i, batch in enumerate(task.batches):
                    states = (s.get(i, stream.device) for s in (cut, dense))
                    x, z = (wide(n(s)) for n, s in zip(norms, states, strict=True))
                    yield batch.real(x), batch.real(z)

        if source.tied:
            return scaled_norm(pairs(), task.fitted, source, stream.device)
        dtype, present = summed_in(stream.dtype), selection(source, stream.device)
        new, self.outer_outcome = regress(pairs(), task.fitted, present, dtype, GRID, "the head")
        if new is None:
            return {}
        head = source.whole.read([source.family.head])[source.family.head]
        parts = [(rows.to(new) @ new).to("cpu", head.dtype) for rows in head.split(ROWS)]
        return {source.family.head: torch.cat(parts)}


def scaled_norm(
    pairs: Pairs, fitted: int, source: FewerChannels, device: torch.device
) -> dict[str, torch.Tensor]:
    """The last norm's weight with the best factors; nothing where it is best as it is.

    The factors are the solution of (E^T E * sum of x x^T) d = sum of x * E^T F z, which is a regression
    of one output. E and F are without their means over the vocabulary, which no prediction sees.
    """
    name, embedding = source.last_norm, source.family.embedding
    ours, theirs = (s.read([embedding])[embedding] for s in (source, source.whole))
    kept, all_of = products(ours, ours, device), products(ours, theirs, device)
    energy = products(theirs, theirs, device)
    fit, held = (Moments.empty(ours.shape[1], theirs.shape[1], device) for _ in range(2))
    whole = torch.zeros((), dtype=torch.float64, device=device)
    for i, (x, z) in enumerate(pairs):
        (fit if i < fitted else held).add(x, z)
        if i >= fitted:
            whole += ((z.float() @ energy) * z).sum(dtype=torch.float64)
    grams = [kept * moments.gram for moments in (fit, held)]
    crosses = [(all_of * moments.cross.T).sum(1)[None] for moments in (fit, held)]
    one = torch.ones_like(crosses[0])
    new, taken, _ = ridge(grams[0], crosses[0], one, grams[1], crosses[1], whole, GRID)
    if taken is None:
        return {}
    weight, offset = source.read([name])[name], source.family.norm_offset
    factors = new[0].to("cpu")
    return {name: (factors * (weight.to(factors) + offset) - offset).to(weight.dtype)}


def products(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A^T B of matrices [vocabulary, channels] less their means over the rows, float32."""
    sums, means = torch.zeros(a.shape[1], b.shape[1], device=device), []
    for some, others in zip(a.split(ROWS), b.split(ROWS), strict=True):
        sums += some.to(device).float().T @ others.to(device).float()
    for matrix in (a, b):
        parts = (rows.to(device).sum(0, dtype=torch.float32) for rows in matrix.split(ROWS))
        means.append(sum(parts, torch.zeros(matrix.shape[1], device=device)) / len(matrix))
    return sums - len(a) * torch.outer(*means)


def selection(source: FewerChannels, device: torch.device) -> torch.Tensor:
    """The channels that stay as a matrix [hidden, kept], float32."""
    return torch.eye(source.whole.hidden_size, device=device)[:, source.places.to(device)]
