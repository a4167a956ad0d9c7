"""The repair of one block of a model with fewer channels in its residual stream, on two paths.

It is that of `block.py`, but for three things. What stays of the dense stream is what `o_proj` and
`down_proj` are fitted to, and the block is trained toward. Of what the block reads, let z be what its
norm gives in the dense model, x what it gives in the narrower one so far:

    R = argmin sum over tokens of |R x - z|^2,   drawn toward the choice of the channels that stay,

goes into all matrices that read x: W' = W R of the source's W. So they read of the stream that is left
what the whole one would have told them, and how much larger or smaller a norm over fewer channels makes
it. A norm behind `o_proj` or `down_proj` divides by the root mean square of fewer channels, too; its
weight is multiplied by the mean over tokens of how much less that is in the dense model.

After the last block the head, or the norm before it, is fitted (`outer.py`); where the block is trained,
before that, so that it learns to predict with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from compressor.model.activations import Activations, states_of
from compressor.model.fewer_channels import FewerChannels
from compressor.model.layers import added, norm_of
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.repairing.block import BlockRepair, Called
from compressor.repairing.losses import Loss, predictions
from compressor.repairing.outer import fitted_outer, selection
from compressor.solvers.ridge import Pairs, rates, wide


class Kept(Activations):
    """What stays of a dense stream."""

    def __init__(self, dense: Activations, source: FewerChannels):
        super().__init__()
        self.dense, self.source = dense, source

    def get(self, batch: int, device: torch.device) -> torch.Tensor:
        return kept(self.dense.get(batch, device), self.source)


def kept(states: torch.Tensor, source: FewerChannels) -> torch.Tensor:
    return states[..., source.places.to(states.device)]


class ChannelRepair(BlockRepair):
    """saved: where the tensors outside the blocks are kept once they are fitted, if anywhere."""

    saved: Path | None = None

    def __init__(self, *block):
        super().__init__(*block)
        self.source = cast(FewerChannels, self.task.stream.checkpoint)
        self.whole = self.source.whole.read_block(self.index)
        self.shrunk: dict[str, list[torch.Tensor]] = {group: [] for group in self.family.groups()}

    @property
    def ffn_alone(self) -> bool:
        return False

    @property
    def trained(self) -> list[str]:
        """All matrices that read the stream or write to it."""
        source, groups = self.source, self.family.groups()
        names = [n for g in groups for n in source.readers(self.index, g)]
        names += [n for g in groups for n in source.writers(self.index, g)]
        return [name for name in names if not name.endswith(".bias")]

    def run(self, dense: Activations, cut: Activations) -> tuple[Activations, Activations]:
        dense, cut = super().run(dense, cut)
        if self.last and not self.task.kind.refined:
            self.fit_outer(dense, lambda i: cut.get(i, self.device))
        return dense, cut

    def resume(self, changed, steps, dense, cut) -> tuple[Activations, Activations]:
        if self.last:
            self.source.outer = finished_block(self.saved, 0) or {}
        return super().resume(changed, steps, dense, cut)

    def correct(self, group: str, dense: Activations, cut: Activations) -> None:
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
            self.replace(step, {n: self.whole[n].to(new) @ new for n in names})

    def normed(self, group: str, projected: torch.Tensor) -> torch.Tensor:
        """Of the dense block, or of the narrow one, as wide as what is given."""
        dense = projected.shape[-1] == self.source.whole.hidden_size
        return added(self.layer if dense else self.narrow, self.family, group, projected)

    def weighed(
        self, group: str, inputs, before, after, projected
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if group in self.family.post_norms:
            few, seen = kept(projected, self.source), self.shrunk[group]
            less = rates(projected) / rates(few)
            seen.append(self.task.batches[len(seen)].real(less))
            projected = few
        return super().weighed(group, inputs, before, kept(after, self.source), projected)

    def refit(self, group: str, pairs: Pairs) -> None:
        super().refit(group, pairs)
        if norm := self.family.post_norms.get(group):
            times = torch.cat(self.shrunk[group][: self.task.fitted]).mean()
            name, offset = f"{norm}.weight", self.family.norm_offset
            step = f"{group} norm"
            self.record[step] = {"times": times.item()}
            weight = self.stored[name].to(times)
            self.replace(step, {name: (weight + offset) * times - offset})

    def refit_ffn(self, after, read, dense_out, dense_ffn) -> None:
        kept_out = Kept(dense_out, self.source) if self.family.experts else dense_out
        super().refit_ffn(after, read, kept_out, dense_ffn)

    def refine(self, called: Called, dense_out: Activations) -> None:
        if not self.last:
            return super().refine(called, Kept(dense_out, self.source))

        def after(i: int) -> torch.Tensor:
            hidden, args, call = called(i)
            return states_of(self.narrow(hidden, *args, **call))

        self.fit_outer(dense_out, after)
        return super().refine(called, dense_out)

    @contextmanager
    def predicting(self) -> Iterator[Loss]:
        """Between the predictions of both models, each of its own stream."""
        stream = self.task.stream
        with stream.outer(head=True) as ours, stream.whole.outer(head=True) as theirs:
            yield predictions(stream, ours, (stream.whole, theirs))

    def fit_outer(self, dense: Activations, cut: Callable[[int], torch.Tensor]) -> None:
        """Fit what lies behind the last block to the streams after it."""
        self.source.outer = {}
        self.source.outer = fitted_outer(self.task, dense, cut)
        keep_block(self.saved, 0, self.source.outer)
