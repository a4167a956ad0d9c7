"""What gradient methods see of a block: sums of weight x gradient of every unit, one sequence at a time.

Each parameter's gradient is reduced by the `taylor` op the moment it is complete, and dropped; one
gradient tensor exists at a time. Of tensor t, unit u and sequence n are kept

    signed    |sum p|      of the unit as a whole: the derivative of switching the tensor's part off
    vector    sum |S_c|    over the unit's channels c, S_c = sum p      (LLM-Pruner's vector-wise)
    absolute  sum |p|      over the unit's weights                      (first order, element-wise)
    square    sum p^2      2/N times it is the Fisher second order      (second order, element-wise)

with p = weight x gradient of the sequence's mean token loss.
"""

import torch
from torch import nn

from compressor.errors import InputError
from compressor.kernels.taylor import taylor
from compressor.methods.statistics import Geometry

KINDS = ("signed", "vector", "absolute", "square")


class GradientStatistics:
    """Context manager: while it is open, every backward of `layer` appends one sequence.

    `block` is the block's index, for messages.
    """

    def __init__(self, layer: nn.Module, geometry: Geometry, block: int):
        self.layer, self.geometry, self.block = layer, geometry, block
        self.found: dict[str, list[torch.Tensor]] = {}
        self.handles = []

    def __enter__(self) -> "GradientStatistics":
        for group, slices in self.geometry.family.groups().items():
            for part in slices:
                module_name, _, leaf = part.tensor.rpartition(".")
                parameter = getattr(self.layer.get_submodule(module_name), leaf)
                if parameter is None:
                    continue
                self.found[part.tensor] = []
                hook = self._hook(part.tensor, part.axis, self.geometry.units[group])
                parameter.requires_grad_(True)
                self.handles.append(parameter.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for parameter in self.layer.parameters():
            parameter.requires_grad_(False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By tensor name [sequences, kinds, units], float32 on the CPU."""
        return {name: torch.stack(rows) for name, rows in self.found.items()}

    def _hook(self, name: str, axis: int, units: int):
        def hook(parameter: torch.Tensor) -> None:
            weight, gradient = parameter.detach(), parameter.grad
            if weight.ndim == 1:  # a bias is a matrix of one column
                weight, gradient = weight[:, None], gradient[:, None]
            found = taylor(weight, gradient, rows=axis == 0, columns=axis == 1)
            parameter.grad = None
            if found.nonfinite:
                raise InputError(
                    f"The gradient of {name} in block {self.block} has {int(found.nonfinite)} "
                    "infinite or NaN values; try --dtype float32."
                )
            sums = found.columns if axis else found.rows
            signed, absolute, square = sums.unflatten(-1, (units, -1))
            kinds = (signed.sum(-1).abs(), signed.abs().sum(-1), absolute.sum(-1), square.sum(-1))
            self.found[name].append(torch.stack(kinds).cpu())

        return hook
