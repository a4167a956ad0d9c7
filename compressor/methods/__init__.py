"""The methods, by name. A method turns a block's weights and statistics into scores of its units.

A method that looks at one block at a time is a function of the block:

    score(weights, statistics, geometry, mode, seed) -> {"attention": [groups], "ffn": [channels]}

weights: the block's tensors by name; statistics: means per token (methods/statistics.py). A method
that needs gradients reduces each block's evidence (methods/gradient_statistics.py) to a few numbers a
unit, and scores all blocks together in the end:

    reduce(evidence, geometry) -> anything small
    fuse([reduced of each block], mode) -> (scores of each block, alpha of each block)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from compressor.errors import InputError
from compressor.kernels.activations import ACTIVATIONS
from compressor.methods import baselines, hywia, llm_bip

Score = Callable[..., dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Method:
    """`modes` maps each mode to the statistics it needs; the first one is the default.

    A mode `NAME:a` stands for NAME with any number from 0 to 1.
    """

    name: str
    score: Score | None
    modes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reduce: Callable | None = None
    fuse: Callable | None = None

    def check_mode(self, mode: str | None) -> str:
        mode = mode or next(iter(self.modes))
        if self._pattern(mode) not in self.modes:
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
        return self.modes[self._pattern(mode)]

    @staticmethod
    def _pattern(mode: str) -> str:
        """The key of `modes` that a mode falls under, or of none."""
        name, colon, number = mode.partition(":")
        if not colon:
            return mode
        try:
            return f"{name}:a" if 0 <= float(number) <= 1 else ""
        except ValueError:
            return ""


GRADIENTS = frozenset({"gradients"})

METHODS = {
    method.name: method
    for method in (
        Method("llm-bip", llm_bip.score, llm_bip.MODES),
        Method(
            "hywia",
            None,
            {"attention": GRADIENTS, "fixed:a": GRADIENTS},
            reduce=hywia.tokens,
            fuse=hywia.fuse,
        ),
        Method("wanda-sp", baselines.wanda_sp, {"l2": frozenset({"moments"})}),
        Method("magnitude", baselines.magnitude, {"l2": frozenset(), "l1": frozenset()}),
        Method("random", baselines.random, {"uniform": frozenset()}),
    )
}
DEFAULT_METHOD = "llm-bip"
