"""Repair: what a cut model computes is fitted to what the dense one computes, block by block.

A kind of repair says what the refitted projections aim at (`toward`) and what of them may move:

    ridge        the dense model's residual stream; weights, and a correction of what projections read
    ridge-local  the sub-layer's own former output for the same inputs; weights
    bias         the dense model's residual stream; the biases of the output projections alone
    refine       what ridge does, and then all projections of a block are trained together, in so many
                 passes over the text (epochs)

Formulas: `solvers/ridge.py`, `repairing/refine.py`.
"""

from dataclasses import dataclass, replace

from compressor.config.options import at_least, option
from compressor.errors import InputError


@dataclass(frozen=True)
class Kind:
    """toward: `dense` or `local`; weights: whether they are refitted, or biases alone; refined: whether
    the block is trained after the closed form.
    """

    toward: str
    weights: bool
    refined: bool = False


KINDS = {
    "ridge": Kind("dense", weights=True),
    "ridge-local": Kind("local", weights=True),
    "refine": Kind("dense", weights=True, refined=True),
    "bias": Kind("dense", weights=False),
    "none": None,
}
DEFAULT_REPAIR = "refine"


def closed_form(repair: str) -> str:
    """The kind that does the same without training."""
    kind = KINDS[repair]
    if kind is None or not kind.refined:
        return repair
    return next(name for name, other in KINDS.items() if other == replace(kind, refined=False))


def check_kind(repair: str, epochs: int | None) -> None:
    """Refuse an unknown kind, and epochs of one that has none."""
    if repair not in KINDS:
        raise InputError(f"The repair {repair!r} is not one of {', '.join(KINDS)}.")
    if epochs is not None:
        if closed_form(repair) == repair:
            raise InputError(
                f"Passes over the text (refine_epochs) are for --repair refine, not {repair}; leave "
                "them out."
            )
        if epochs < 1:
            raise InputError(f"refine_epochs must be at least 1, not {epochs}.")


@dataclass(frozen=True)
class RepairConfig:
    """The kind, and in how many passes over the text `refine` trains a block."""

    kind: str = option(
        DEFAULT_REPAIR,
        "--repair",
        "What happens to the weights that stay: refine (refitted, then trained block by block; "
        "refine:8 trains in 8 passes over the text), ridge (refitted), or none.",
    )
    epochs: int | None = option(
        None,
        "refine_epochs",
        "Passes over the text (default 2 where a block keeps its attention, else 1).",
        at_least(1),
    )

    def check(self) -> None:
        check_kind(self.kind, self.epochs)
