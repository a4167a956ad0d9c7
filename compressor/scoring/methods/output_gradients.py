"""What a block's output projections see of the loss: their inputs, and the gradients on both sides.

No gradient of a weight is built: of each sequence there are, at o_proj and at down_proj, x [tokens,
channels], dL/dx of the same shape and dL/dy [tokens, hidden], with y the projection's output, whose
gradient is that of the residual stream it is added to.

Each token's gradients are multiplied by the number of the sequence's predicted tokens, because the
loss is their mean: long sequences weigh no less. A sequence's last token is left out. It predicts
nothing and no other token attends to it, so that its gradients are zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial

import torch
from torch import nn

from compressor.errors import InputError
from compressor.model.finite import Levels
from compressor.model.observing import observed
from compressor.model.units import BlockGeometry


class OutputGradients(ABC):
    """Context manager: while it is open, every backward of `layer` is observed.

    After each sequence's backward `end_sequence` must be called; `reduced` gives the scores in the
    end, with the weights still in place. `block` is the block's index, for messages; `grains` are None,
    as these scores have none; `groups` are those that are observed, all by default.
    """

    def __init__(
        self,
        layer: nn.Module,
        geometry: BlockGeometry,
        block: int,
        grains: None = None,
        groups: Collection[str] | None = None,
    ):
        self.layer, self.geometry, self.block = layer, geometry, block
        self.groups = [group for group in groups or geometry.units if group in geometry.units]
        self.seen: dict[str, dict[str, torch.Tensor]] = {}
        self.levels: Levels[tuple[str, str]] = Levels()
        self.tokens = 0

    def __enter__(self) -> "OutputGradients":
        passed = {self.geometry.output_module(g): partial(self._passed, g) for g in self.groups}
        self.open = observed(self.layer, passed=passed)
        self.open.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.open.__exit__(*error)
        self.seen.clear()

    def end_sequence(self, predicted_tokens: int) -> None:
        """Take in what the last backward showed."""
        x: torch.Tensor | tuple = ()
        for group, seen in self.seen.items():
            x, dx, dy = (_rows(seen[name]) for name in ("x", "dx", "dy"))
            for side, gradient in (("output", dy), ("input", dx)):
                self.levels.add((side, group), gradient)
            self.add(group, x, dx * predicted_tokens, dy * predicted_tokens)
        self.tokens += len(x)
        self.seen.clear()

    @abstractmethod
    def add(self, group: str, x: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor) -> None:
        """Accumulate one sequence: x, dx [tokens, channels] and dy [tokens, hidden], float32 or 64."""

    def reduced(self) -> dict[str, torch.Tensor]:
        """Scores of the block's units by group: [units], float64 on the CPU.

        `InputError` if a gradient was not finite; the device is asked for that here, once a block.
        """
        for side, group in self.levels.not_finite():
            raise InputError(
                f"The gradient of the {side} of {self.geometry.output_module(group)} in block "
                f"{self.block} is not finite; try --dtype float32."
            )
        return {group: score.cpu() for group, score in self.scores().items()}

    @abstractmethod
    def scores(self) -> dict[str, torch.Tensor]:
        """By group [units], float64, where it was computed."""

    def _passed(self, group: str, x: torch.Tensor, output: torch.Tensor) -> None:
        """Keep what a projection reads, and what the backward brings to both of its sides."""
        seen = self.seen[group] = {"x": x.detach()}

        def keep(name: str, gradient: torch.Tensor) -> None:
            seen[name] = gradient

        x.register_hook(partial(keep, "dx"))
        output.register_hook(partial(keep, "dy"))


def _rows(states: torch.Tensor) -> torch.Tensor:
    """Of one sequence [.., tokens, n] without the last token, one row a token, float32 or better."""
    rows = states.flatten(0, -2)[:-1]
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
