"""What to reach: a share of the model, or a bound."""

from collections.abc import Iterable
from dataclasses import dataclass

from compressor.config.amounts import COUNTS, SIZES, parse_amount, parse_bound
from compressor.errors import InputError

DEPTH, HIDDEN = "drop-blocks", "keep-hidden"
WITHOUT_WIDTHS = (DEPTH, HIDDEN)  # kinds for which no widths of blocks are to be found


@dataclass(frozen=True)
class Target:
    """What to reach: `kind` is keep, keep-blocks, params or bytes; `value` in that unit. A cut by depth
    alone has `DEPTH` and the number of blocks that go, one of the hidden size `HIDDEN` and the share or
    the number of channels that stay: there are no widths to find.

    budget: what keep and keep-blocks are shares of: params, flops, or the path of a table of costs.
    A share is come near to, from below or above; params and bytes are bounds, never exceeded.
    """

    kind: str
    value: float
    budget: str = "params"

    def __post_init__(self):
        if self.hard and self.budget != "params":
            raise InputError(
                f"--budget {self.budget} is for --keep and --keep-blocks; --target counts parameters or "
                "bytes."
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
        """As one would say it on the command line: `--keep 0.8`, `--target 8,000 bytes`."""
        if not self.hard:
            return f"--{self.kind} {self.value:g}"
        return f"--target {self.value:,.0f} {'bytes' if self.kind == 'bytes' else 'parameters'}"

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


def target_name(target: Target) -> str:
    """`keep-0.7`, `params-7e+09`; a whole number of more than six digits with all of them."""
    value, short = target.value, f"{target.value:g}"
    exact = f"{value:.0f}" if value % 1 == 0 and float(short) != value else short
    return f"{target.kind}-{exact}"


def targets_of(
    keep: float | Iterable[float] | None = None,
    keep_blocks: float | Iterable[float] | None = None,
    target: str | float | None = None,
    target_params: float | str | None = None,
    target_bytes: float | str | None = None,
    budget: str = "params",
) -> tuple[Target, ...]:
    """The targets of some shares and bounds; InputError for a budget of nothing.

    target: a bound as one writes it, `5.4B` parameters or `11GB`.
    """
    if isinstance(target, int | float):
        target_params = target
    elif target is not None:
        kind, value = parse_bound(target)
        target_params = value if kind == "params" else target_params
        target_bytes = value if kind == "bytes" else target_bytes
    targets = [Target("keep", share, budget) for share in several(keep)]
    targets += [Target("keep-blocks", share, budget) for share in several(keep_blocks)]
    for kind, bound, units in (("params", target_params, COUNTS), ("bytes", target_bytes, SIZES)):
        if bound is not None:
            value = parse_amount(bound, units) if isinstance(bound, str) else float(bound)
            targets.append(Target(kind, value, budget))
    if budget != "params" and not targets:
        raise InputError(f"--budget {budget} needs --keep or --keep-blocks, which it counts.")
    return tuple(targets)


def several(shares: float | Iterable[float] | None) -> list[float]:
    if shares is None:
        return []
    each: list = [*shares] if isinstance(shares, list | tuple) else [shares]
    if wrong := [s for s in each if not isinstance(s, int | float) or isinstance(s, bool)]:
        raise InputError(f"A share to keep is a number between 0 and 1, not {wrong[0]!r}.")
    return each
