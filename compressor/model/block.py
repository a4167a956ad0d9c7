"""One block as a function of its weights: what it computes, and how far that is from a target.

Whatever is learned about a block (which weights go, which channels go) is judged by this error, on
the inputs that the blocks before it produce.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.func import functional_call

from compressor.kernels.moments import moments
from compressor.model.activations import Activations, states_of
from compressor.model.observing import observed
from compressor.model.ranks import ALONE, Alone

LEAST_ENERGY = 1e-6  # of the mean feature's: a feature that is all but zero must not decide


@dataclass(frozen=True)
class Block:
    """A loaded block and what it is called with on each calibration sequence.

    layer: the module, its weights in place. inputs: the hidden state [1, tokens, hidden] of each
    sequence, as the pruned blocks before produce it. calls: (arguments, keywords) of each sequence,
    of which the first `count` are for calibration; of several ranks each has its own. readers: names
    of the projections' weights, those that read the same input together, in the order they are
    computed.
    """

    index: int
    layer: nn.Module
    inputs: Activations
    calls: list[tuple[tuple, dict]]
    count: int
    device: torch.device
    readers: list[list[str]]
    ranks: Alone = ALONE

    @property
    def names(self) -> list[str]:
        return [name for together in self.readers for name in together]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The projections' weights [out, in], by name."""
        return {name: self.layer.get_parameter(name) for name in self.names}

    def run(
        self,
        sequence: int,
        weights: Mapping[str, torch.Tensor] | None = None,
        inputs: Activations | None = None,
    ) -> torch.Tensor:
        """The output on one sequence, with `weights` in the place of the tensors they name.

        Differentiable in `weights`; `inputs` stand in for the block's own.
        """
        args, keywords = self.calls[sequence]
        hidden = (inputs or self.inputs).get(sequence, self.device)
        # A block ties no weights, and to look for such takes longer than a small block's attention.
        output = functional_call(
            self.layer, dict(weights or {}), (hidden, *args), keywords, tie_weights=False
        )
        return states_of(output)


@torch.no_grad()
def observe(
    block: Block,
    measure: Callable[[torch.Tensor], torch.Tensor],
    outputs: Activations | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    readers: list[list[str]] | None = None,
) -> dict[str, torch.Tensor]:
    """Sums over the calibration sequences of measure(x), x [tokens, channels] what a projection reads.

    One pass of the block with `weights`, if any, in place of its own. By the projection's name, of
    `readers` only, if any. `outputs` receives the block's output on each sequence.
    """
    readers = readers or block.readers
    sums: dict[str, torch.Tensor] = {}

    def add(names: list[str], x: torch.Tensor) -> None:
        value = measure(x.flatten(0, -2))
        value = sums[names[0]] + value if names[0] in sums else value
        sums.update(dict.fromkeys(names, value))

    adders = {names[0].removesuffix(".weight"): partial(add, names) for names in readers}
    with observed(block.layer, adders):
        for sequence in range(block.count):
            output = block.run(sequence, weights)
            if outputs is not None:
                outputs.put(sequence, output)
    block.ranks.all_sum(*(sums[names[0]] for names in readers))
    return sums


def squares(x: torch.Tensor) -> torch.Tensor:
    """sum_t x_tc^2 of every channel, float64 [channels]."""
    return moments(x)[2].double()


def gram(x: torch.Tensor) -> torch.Tensor:
    """x^T x in float32 or better, [channels, channels]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.T @ x


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the features h of ||Y_h - T_h||^2 / ||T_h||^2, norms over all tokens; a scalar.

    BESA's reconstruction error as its released program divides it (arXiv 2402.16880, equation 1, has
    the plain Frobenius norm): it has no unit, so that one penalty suits every model. Computed in
    float32 or better.
    """
    exact = torch.promote_types(target.dtype, torch.float32)
    output, target = output.to(exact).flatten(0, -2), target.to(exact).flatten(0, -2)
    energy = target.square().sum(0)
    energy = energy.clamp_min(LEAST_ENERGY * energy.mean())
    return ((output - target).square().sum(0) / energy).mean()
