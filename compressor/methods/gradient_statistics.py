"""What gradient methods see of a block: sums of weight x gradient of every unit.

Each parameter's gradient is reduced by the `taylor` op the moment it is complete, and dropped; one
gradient tensor exists at a time. A module's bias counts as one more column of its weight. Of module
m, unit u and sequence n are kept, with p = weight x gradient of the sequence's mean token loss,

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

from compressor.errors import InputError
from compressor.kernels.taylor import taylor
from compressor.methods.statistics import Geometry

KINDS = ("signed", "vector", "absolute", "square")
SOURCES = ("sequences", "mean", "mix")


class GradientStatistics:
    """Context manager: while it is open, backwards of `layer` are reduced to sums of its units.

    block: the block's index, for messages. sources: which of these to keep, each by module name a
    float32 tensor [n, kinds, units] on the CPU (`evidence`):
        sequences   the kinds of every sequence, n = sequences
        mean        those of the mean gradient G, n = 1
        mix         those of G - w F / 2, n = 1: `absolute` is sum |w G - w^2 F / 2|
    `end_sequence` must be called after every sequence's backward.
    """

    def __init__(self, layer: nn.Module, geometry: Geometry, block: int, sources: set[str]):
        self.layer, self.geometry, self.block = layer, geometry, block
        self.sources = sources
        self.sequences = 0
        self.handles = []
        self.parts: dict[str, tuple[int, int]] = {}  # of each module, the axis and the units
        self.sums: dict[str, torch.Tensor] = {}  # of this sequence, by module: [3, channels]
        self.found: dict[str, list[torch.Tensor]] = {}
        self.gradients: dict[str, torch.Tensor] = {}  # sums over the sequences, by parameter
        self.squares: dict[str, torch.Tensor] = {}

    def __enter__(self) -> "GradientStatistics":
        for group, slices in self.geometry.family.groups().items():
            for part in slices:
                module, _, leaf = part.tensor.rpartition(".")
                parameter = getattr(self.layer.get_submodule(module), leaf)
                if parameter is None:
                    continue
                self.parts[module] = (part.axis, self.geometry.units[group])
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
        for module, sums in self.sums.items():
            self.found.setdefault(module, []).append(self._kinds(module, sums))
        self.sums.clear()

    def evidence(self) -> dict[str, dict[str, torch.Tensor]]:
        """By source and module [n, kinds, units]."""
        found = {}
        if "sequences" in self.sources:
            found["sequences"] = {m: torch.stack(rows) for m, rows in self.found.items()}
        if "mean" in self.sources:
            found["mean"] = self._of_gradients(lambda name, weight, mean: mean)
        if "mix" in self.sources:
            found["mix"] = self._of_gradients(
                lambda name, weight, mean: mean - weight * self.squares[name] / (2 * self.sequences)
            )
        return found

    def _of_gradients(self, effective) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        for name, total in self.gradients.items():
            weight = self.layer.get_parameter(name).detach()
            self._add(sums, name, weight, effective(name, weight, total / self.sequences))
        return {module: self._kinds(module, s)[None] for module, s in sums.items()}

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
        module = name.rpartition(".")[0]
        if weight.ndim == 1:
            weight, gradient = weight[:, None], gradient[:, None]
        columns = self.parts[module][0] == 1
        found = taylor(weight, gradient, rows=not columns, columns=columns)
        if found.nonfinite:
            raise InputError(
                f"The gradient of {name} in block {self.block} has {int(found.nonfinite)} "
                "infinite or NaN values; try --dtype float32."
            )
        own = found.columns if columns else found.rows
        sums[module] = sums[module] + own if module in sums else own

    def _kinds(self, module: str, sums: torch.Tensor) -> torch.Tensor:
        """[kinds, units] of channel sums [3, channels]; neighbouring channels are one unit's."""
        signed, absolute, square = sums.unflatten(-1, (self.parts[module][1], -1))
        kinds = (signed.sum(-1).abs(), signed.abs().sum(-1), absolute.sum(-1), square.sum(-1))
        return torch.stack(kinds).cpu()
