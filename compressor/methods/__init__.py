"""The methods, by name. A method turns a block's weights and statistics into scores of its units.

Every method has the same form, so users can compare them:

    score(weights, statistics, geometry, mode, seed) -> {"attention": [groups], "ffn": [channels]}

weights: the block's tensors by name; statistics: means per token (methods/statistics.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from compressor.errors import InputError
from compressor.kernels.activations import ACTIVATIONS
from compressor.methods import baselines, llm_bip

Score = Callable[..., dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Method:
    """`modes` maps each mode to the statistics it needs; the first one is the default."""

    name: str
    score: Score
    modes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def check_mode(self, mode: str | None) -> str:
        mode = mode or next(iter(self.modes))
        if mode not in self.modes:
            raise InputError(
                f"The method {self.name} has no mode {mode!r}; it has {', '.join(self.modes)}."
            )
        return mode

    def check_activation(self, mode: str, activation: str) -> None:
        """Modes that look inside the gated FFN know the derivative of some activations only."""
        if "gated" in self.wants(mode) and activation not in ACTIVATIONS:
            raise InputError(
                f"The mode {mode} knows the activations {', '.join(ACTIVATIONS)}, and this model "
                f"has {activation!r}; use --mode bip, or another method."
            )

    def wants(self, mode: str) -> frozenset[str]:
        return self.modes[mode]


METHODS = {
    method.name: method
    for method in (
        Method("llm-bip", llm_bip.score, llm_bip.MODES),
        Method("wanda-sp", baselines.wanda_sp, {"l2": frozenset({"moments"})}),
        Method("magnitude", baselines.magnitude, {"l2": frozenset(), "l1": frozenset()}),
        Method("random", baselines.random, {"uniform": frozenset()}),
    )
}
DEFAULT_METHOD = "llm-bip"
