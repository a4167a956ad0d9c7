"""What to reach: a share of the model, or a bound."""

from dataclasses import dataclass

from compressor.errors import InputError


@dataclass(frozen=True)
class Target:
    """What to reach: `kind` is keep, keep-blocks, params or bytes; `value` in that unit.

    budget: what keep and keep-blocks are shares of: params, flops, or the path of a table of costs.
    A share is come near to, from below or above; params and bytes are bounds, never exceeded.
    """

    kind: str
    value: float
    budget: str = "params"

    def __post_init__(self):
        if self.kind in ("params", "bytes") and self.budget != "params":
            raise InputError(
                f"--budget {self.budget} is for --keep and --keep-blocks; --target-{self.kind} counts "
                f"{self.kind}."
            )

    @property
    def measure(self) -> str:
        """What sizes are counted in: params, bytes, flops or parts of a table's whole."""
        if self.kind in ("params", "bytes"):
            return self.kind
        return self.budget if self.budget in ("params", "flops") else "parts"

    @property
    def hard(self) -> bool:
        """Whether nothing above it will do."""
        return self.kind in ("params", "bytes")

    @property
    def flag(self) -> str:
        """As the command line has it: `--keep 0.8`."""
        option = f"target-{self.kind}" if self.hard else self.kind
        return f"--{option} {self.value:{',.0f' if self.hard else 'g'}}"

    def number(self, value: float) -> str:
        return f"{value:,.0f}" if self.hard else f"{value:.4f}"

    def in_words(self, value: float) -> str:
        """A value in this target's unit: `0.8011 of all parameters`."""
        if self.hard:
            return f"{self.number(value)} {'bytes' if self.kind == 'bytes' else 'parameters'}"
        every, blocks = {
            "params": ("all parameters", "the blocks' weights"),
            "flops": ("all FLOPs", "the blocks' FLOPs"),
            "parts": ("all costs", "the blocks' costs"),
        }[self.measure]
        return f"{self.number(value)} of {blocks if self.kind == 'keep-blocks' else every}"
