"""What gradient methods see of a block: sums of weight x gradient of every unit.

Each parameter's gradient is reduced by the `taylor` op the moment it is complete, and dropped; one
gradient tensor exists at a time. A module's bias counts as one more column of its weight, and the
projections of a fused module count as modules; so do the stacks of experts, and their router. Of
module m, unit u and sequence n are kept, with p = weight x gradient of the sequence's mean token loss,

    signed    |sum p|      of the unit as a whole: the derivative of switching the module's part off
    vector    sum |S_c|    over the unit's channels c, S_c = sum p      (LLM-Pruner's vector-wise)
    absolute  sum |p|      over the unit's weights                      (first order, element-wise)
    square    sum p^2      its mean over n is sum w^2 F, with F = mean_n g^2 the diagonal of the
                           empirical Fisher matrix                      (second order, element-wise)

LLM-Pruner (arXiv 2305.11627) takes these of the calibration set's mean gradient instead, and mixes
both orders within a weight, which needs F itself: two float32 copies of one block at most.
"""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from compressor.errors import InputError
from compressor.kernels.taylor import taylor
from compressor.model.families import Slice
from compressor.model.units import BlockGeometry

KINDS = ("signed", "vector", "absolute", "square")


class GradientStatistics:
    """Context manager: while it is open, backwards of `layer` are reduced to sums of its units.

    block: the block's index, for messages. sources: which of these to keep, each by module name a
    float32 tensor [n, kinds, units] on the CPU (`evidence`):
        sequences   the kinds of every sequence, n = sequences
        mean        those of the mean gradient G, n = 1
        mix         those of G - w F / 2, n = 1: `absolute` is sum |w G - w^2 F / 2|
    `end_sequence` must be called after every sequence's backward.
    """

    def __init__(self, layer: nn.Module, geometry: BlockGeometry, block: int, sources: set[str]):
        self.layer, self.geometry, self.block = layer, geometry, block
        self.sources = sources
        self.sequences = 0
        self.handles: list[RemovableHandle] = []
        self.parts: dict[str, tuple[Slice, int]] = {}  # of each module, and its units
        self.slices: dict[str, Slice] = {}  # of each tensor
        self.sums: dict[str, torch.Tensor] = {}  # of this sequence, by module: [3, channels]
        self.kinds: dict[str, list[torch.Tensor]] = {}
        self.gradients: dict[str, torch.Tensor] = {}  # sums over the sequences, by parameter
        self.squares: dict[str, torch.Tensor] = {}
        self.nonfinite: dict[str, torch.Tensor] = {}  # of every parameter, how many values so far

    def __enter__(self) -> "GradientStatistics":
        for group, slices in self.geometry.family.groups().items():
            for part in slices:
                leaf = part.tensor.rpartition(".")[2]
                parameter = getattr(self.layer.get_submodule(part.module), leaf)
                if parameter is None:
                    continue
                self.parts[part.key] = part, self.geometry.units[group]
                self.slices[part.tensor] = part
                parameter.requires_grad_(True)
                hook = self._hook(part.tensor)
                self.handles.append(parameter.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for parameter in self.layer.parameters():
            parameter.requires_grad_(False)

    def end_sequence(self, predicted: int) -> None:
        """The backward of a sequence of `predicted` predicted tokens is over."""
        self.sequences += 1
        for name, kinds in self._kinds(self.sums).items():
            self.kinds.setdefault(name, []).append(kinds)
        self.sums.clear()

    def evidence(self) -> dict[str, dict[str, torch.Tensor]]:
        """By source and module [n, kinds, units]; `InputError` for gradients that were not finite.

        All is read from the device here, once a block.
        """
        evidence = {source: self._of_mean(source) for source in self.sources - {"sequences"}}
        if "sequences" in self.sources:
            evidence["sequences"] = {m: torch.stack(rows) for m, rows in self.kinds.items()}
        self._check_finite()
        return {s: {m: rows.cpu() for m, rows in of.items()} for s, of in evidence.items()}

    def _check_finite(self) -> None:
        if not self.nonfinite:  # no group of this block has units
            return
        counts = torch.stack([*self.nonfinite.values()]).tolist()
        for name, count in zip(self.nonfinite, counts, strict=True):
            if count:
                raise InputError(
                    f"The gradient of {name} in block {self.block} has {count} infinite or NaN values; "
                    "try --dtype float32."
                )

    def _of_mean(self, source: str) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        for name, total in self.gradients.items():
            weight = self.layer.get_parameter(name).detach()
            gradient = total / self.sequences
            if source == "mix":
                gradient = gradient - weight * self.squares[name] / (2 * self.sequences)
            self._add(sums, name, weight, gradient)
        return {name: kinds[None] for name, kinds in self._kinds(sums).items()}

    def _hook(self, name: str):
        def hook(parameter: torch.Tensor) -> None:
            weight, gradient = parameter.detach(), parameter.grad
            parameter.grad = None
            if "sequences" in self.sources:
                self._add(self.sums, name, weight, gradient)
            if self.sources & {"mean", "mix"}:
                wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                self._accumulate(self.gradients, name, wide)
                if "mix" in self.sources:
                    self._accumulate(self.squares, name, wide.square())

        return hook

    def _accumulate(self, totals: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        totals[name] = totals[name].add_(value) if name in totals else value.clone()

    def _add(self, sums: dict[str, torch.Tensor], name: str, weight, gradient) -> None:
        """Add a parameter's signed, absolute and square sums [3, channels] to its module's."""
        part = self.slices[name]
        module = part.key
        if weight.ndim != 2:  # a bias is a column
            weight, gradient = (
                part.matrix(t) if t.ndim > 2 else t[:, None] for t in (weight, gradient)
            )
        columns = self.parts[module][0].axis == 1
        reduced = taylor(weight, gradient, rows=not columns, columns=columns)
        self.nonfinite[name] = self.nonfinite.get(name, 0) + reduced.nonfinite
        of_channels = reduced.columns if columns else reduced.rows
        sums[module] = sums[module] + of_channels if module in sums else of_channels

    def _kinds(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """[kinds, units] of every module's channel sums [3, channels], by `names_of` it."""
        by_name = {}
        for module, of_channels in sums.items():
            part, units = self.parts[module]
            pieces = part.pieces(of_channels, units, self.geometry.sizes)
            for name, (signed, absolute, square) in zip(names_of(part), pieces, strict=True):
                kinds = (signed.sum(-1).abs(), signed.abs().sum(-1), absolute.sum(-1))
                by_name[name] = torch.stack((*kinds, square.sum(-1)))
        return by_name


def names_of(part: Slice) -> list[str]:
    """What the projections in a module are called: as it, or `module.0q`, `module.1k`, ... if fused."""
    letters = part.owns.replace(" ", "")
    if len(letters) == 1:
        return [part.key]
    return [f"{part.key}.{i}{letter}" for i, letter in enumerate(letters)]
