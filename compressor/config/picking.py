"""A rule that results are picked by: `perplexity <= 1.1x`, `kl <= 0.05`, `agreement >= 90%`."""

import operator
import re
from dataclasses import dataclass

from compressor.errors import InputError

BOUNDS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
BETTER = {"perplexity": "<", "kl": "<", "agreement": ">"}  # the side on which a measure is better
WRITTEN = re.compile(r"\s*(\w+)\s*([<>]=?)\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*(x|%)?\s*")
UNITS = {"perplexity": "x", "agreement": "%"}  # x: times the source's


@dataclass(frozen=True)
class Rule:
    """measure: one of `BETTER`; relative: whether the value is of the source's."""

    text: str
    measure: str
    bound: str
    value: float
    relative: bool = False

    @property
    def about(self) -> str:
        """The figure of a result that it looks at."""
        return "times" if self.relative else self.measure

    def holds(self, value: float) -> bool:
        return bool(BOUNDS[self.bound](value, self.value))

    def badness(self, value: float) -> float:
        """The less, the better."""
        return value if BETTER[self.measure] == "<" else -value

    def shown(self, value: float) -> str:
        return f"{value:.4g}{'x' * self.relative}"


def parse_rule(text: str) -> Rule:
    """The rule that a text says; InputError for what is none."""
    match = WRITTEN.fullmatch(text)
    measure, bound, number, unit = match.groups() if match else (None, "", "", None)
    if measure not in BETTER or not bound.startswith(BETTER[measure]):
        raise InputError(
            f"--pick {text!r} is no rule; write 'perplexity <= 1.1x' (x: times the source's), "
            "'kl <= 0.05' or 'agreement >= 90%'."
        )
    if unit not in (None, UNITS.get(measure)):
        raise InputError(f"--pick {text!r}: {measure} is not counted in {unit!r}; leave it out.")
    value = float(number) / (100 if unit == "%" else 1)
    return Rule(" ".join(text.split()), measure, bound, value, unit == "x")
