"""What the methods see of a block: sums over the calibration tokens, taken by hooks.

Statistics a method can ask for:
    moments     of the inputs of both output projections (down_proj, o_proj)
    gated       the factors of the gated FFN, or of one without a gate the mean of |phi'| and phi'^2
                (`slopes`); and the mean of 1/rms before its norm, of 1/std if that is a LayerNorm
    gram        X_u^T X_u of every KV group's input to o_proj
                of the channels of experts also times the router's weights (`weighed`)
    routed      of every expert how many tokens are sent to it, and the sum over them of the weight times
                the size of its output, which is computed once more
Sums are kept in float64 on the device; padding is masked out, so neither the order nor the split of
the batches matters beyond rounding.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from compressor.kernels.moments import moments, parts
from compressor.kernels.swiglu_moments import gated_moments
from compressor.model.experts import inner_of, norms_of
from compressor.model.layers import norm_of
from compressor.model.observing import Entering, Passed, observed
from compressor.model.ranks import Alone
from compressor.model.units import BlockGeometry
from compressor.scoring.methods.activations import slope
from compressor.text.tokens import Batch


class BlockStatistics:
    """Context manager: while it is open, every forward of `layer` adds to the sums.

    `batch` must be set before each forward: what it is fed.
    """

    def __init__(self, layer: nn.Module, geometry: BlockGeometry, wanted: frozenset[str]):
        self.layer, self.geometry, self.wanted = layer, geometry, wanted
        self.batch: Batch | None = None
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens = 0
        self.gate_output: torch.Tensor | None = None

    def __enter__(self) -> "BlockStatistics":
        geometry, family = self.geometry, self.geometry.family
        entering: dict[str, Entering] = {
            geometry.output_module(g): partial(self._inputs, g)
            for g in geometry.units
            if g == "attention" or not family.experts
        }
        passed: dict[str, Passed] = {}
        if "gated" in self.wanted and not family.experts:
            entering[family.entered("ffn")] = self._before_norm
            if family.gate not in (None, family.up):
                passed[family.gate] = self._gate
            passed[family.up] = self._plain if family.gate is None else self._gated
        self.open = ExitStack()
        self.open.enter_context(observed(self.layer, entering, passed))
        if family.experts:
            stack = self.layer.get_submodule(family.experts.stack)
            self.open.enter_context(stack.register_forward_pre_hook(self._routed))
        return self

    def __exit__(self, *error) -> None:
        self.open.close()
        self.gate_output = None

    def add_up(self, ranks: Alone) -> None:
        """Make the sums those of all ranks."""
        ranks.all_sum(*self.sums.values())
        self.tokens = sum(ranks.counts(self.tokens))

    def means(self, sequences: int) -> dict[str, torch.Tensor | int]:
        """Every sum over the number of tokens, as float64; plus the counts themselves."""
        means = {name: total / max(self.tokens, 1) for name, total in self.sums.items()}
        return means | {"tokens": self.tokens, "sequences": sequences}

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _inputs(self, group: str, x: torch.Tensor) -> None:
        if group == list(self.geometry.units)[-1]:
            self.tokens += self.batch.tokens
        gated = self.geometry.family.gate is not None and "gated" in self.wanted
        if group != "ffn" or not gated:
            self._add(group, moments(self._in_sequences(x), self._mask(x)))
        if "gram" in self.wanted and group == "attention":
            units = self.batch.real(x).float().unflatten(-1, (self.geometry.units[group], -1))
            units = units.transpose(0, 1)
            self._add("gram", units.transpose(1, 2) @ units)

    def _routed(self, stack: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen, weights = (self.batch.real(x) for x in args)
        self.tokens += self.batch.tokens
        if self.geometry.family.experts.split and "moments" in self.wanted:
            self._inside(stack, hidden, chosen, weights)
        if "routed" not in self.wanted:
            return
        sums = torch.zeros(2, self.geometry.units["ffn"], dtype=torch.float64, device=hidden.device)
        for expert in range(sums.shape[1]):
            tokens, places = torch.where(chosen == expert)
            sums[0, expert] = len(tokens)
            sizes = norms_of(stack, expert, hidden[tokens])
            sums[1, expert] = (weights[tokens, places].double() * sizes).sum()
        self._add("routed", sums)

    def _inside(self, stack: Any, hidden, chosen, weights) -> None:
        """The moments of what every expert's output projection reads, as it is and as it is weighed."""
        sums: dict[str, list[torch.Tensor]] = {"ffn": [], "weighed": []}
        for expert in range(len(stack.down_proj)):
            tokens, places = torch.where(chosen == expert)
            inner = inner_of(stack, expert, hidden[tokens]).double()
            weighed = inner * weights[tokens, places, None].double()
            for name, x in (("ffn", inner), ("weighed", weighed)):
                sums[name].append(torch.stack((x.abs().sum(0), x.sum(0), x.square().sum(0))))
        for name, each in sums.items():
            self._add(name, torch.cat(each, 1))

    def _in_sequences(self, x: torch.Tensor) -> torch.Tensor:
        """[sequences, tokens, channels] of what a block may have flattened (OPT does)."""
        return x.view(*self.batch.mask.shape, -1)

    def _mask(self, x: torch.Tensor) -> torch.Tensor | None:
        return self.batch.mask_on(x.device)

    def _before_norm(self, x: torch.Tensor) -> None:
        norm = norm_of(self.layer, self.geometry.family, "ffn")
        x = self.batch.real(x).float()
        if isinstance(norm, nn.Identity):
            rate = torch.ones_like(x[..., 0])
        elif isinstance(norm, nn.LayerNorm):
            rate = torch.rsqrt(x.var(-1, correction=0) + norm.eps)
        else:
            rate = torch.rsqrt(x.square().mean(-1) + self.geometry.norm_eps)
        self._add("norm_rate", rate.double().sum())

    def _plain(self, _, output: torch.Tensor) -> None:
        for part in parts(self.batch.real(output), None):
            slopes = slope(part, self.geometry.activation).double()
            self._add("slopes", torch.stack((slopes.abs().sum(0), slopes.square().sum(0))))

    def _gate(self, _, output: torch.Tensor) -> None:
        self.gate_output = output

    def _gated(self, _, output: torch.Tensor) -> None:
        # The input of down_proj is not read again: its moments come with the factors.
        gate = output if self.gate_output is None else self.gate_output  # of one module for both
        gate, up = self.geometry.family.gate_and_up(gate, output)
        inner, factors = gated_moments(gate, up, self.geometry.activation, self._mask(gate))
        self._add("ffn", inner)
        self._add("gated", factors)
        self.gate_output = None
