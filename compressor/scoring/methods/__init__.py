"""The methods, by name. A method turns a block's weights and statistics into scores of its units.

Most look at one block at a time, and are a function of the block:

    score(weights, statistics, geometry, mode, seed) -> {"attention": [groups], "ffn": [channels]}

weights: the block's tensors by name; statistics: means per token (statistics.py). One that
needs gradients observes each block during its backward and may score all blocks together in the end:

    observe(layer, geometry, block, grains) -> context manager with
        end_sequence(predicted)   after the backward of a sequence with so many predicted tokens
        reduced()                 a few numbers a unit, by group
    combine([reduced of each block], mode, calibration) -> Combined; without it `reduced` are the scores

One that has `score` may have `combine` as well, which is then given what that has found.

The table is read before torch is imported, which takes seconds; what a method does when it is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

from compressor.errors import InputError
from compressor.scoring.methods.grains import Grains

if TYPE_CHECKING:
    from pathlib import Path

    from compressor.model.families import Family
    from compressor.model.stream import BlockStream
    from compressor.scoring.scores import Blocks
    from compressor.text.tokens import TokenSet


@dataclass(frozen=True)
class Calibration:
    """What was scored on, for a method that looks at it once more. saved: where probes are kept."""

    tokens: "TokenSet"
    stream: "BlockStream"
    seed: int = 0
    saved: "Path | None" = None


@dataclass(frozen=True)
class Combined:
    """Scores of all blocks, and how they came about; of every block and group [units].

    parts: the scores that they were made of, by name; rates: how much of a part is in a unit's score,
    from 0 to 1, by the part's name. mode: the one that was used, which may not be the one that was asked
    for; notes: what a user should know of it.
    """

    scores: "Blocks"
    mode: str
    parts: Mapping[str, "Blocks"] = field(default_factory=dict)
    rates: Mapping[str, "Blocks"] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


CHANNELS, EXPERTS, WITHIN = "channels", "whole experts", "channels of experts"


@dataclass(frozen=True)
class Method:
    """`modes` maps each mode to the statistics it needs; the first one is the default.

    A mode `NAME:a` stands for NAME with any number from 0 to 1. degree: 2 where scores are quadratic in
    what a unit contributes (errors), 1 where they are proportional to it (norms, first orders).
    units: what of an FFN it can score.
    """

    name: str
    score: Callable | None
    modes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    observe: Callable | None = None
    combine: Callable | None = None
    grains: Grains | None = None
    free_grains: tuple[str, ...] = ()  # what of `grains` a user may choose
    allocate: str = "uniform"  # the allocation where none is asked for
    degree: int = 1
    units: tuple[str, ...] = (CHANNELS,)

    def check_mode(self, mode: str | None) -> str:
        mode = mode or next(iter(self.modes))
        if self._pattern(mode) not in self.modes:
            raise InputError(
                f"The method {self.name} has no mode {mode!r}; it has {', '.join(self.modes)}."
            )
        return mode

    def check_units(self, family: "Family") -> None:
        """Refuse a model whose FFNs have units that the method knows nothing of."""
        units = units_of(family)
        if units not in self.units:
            names = [m.name for m in METHODS.values() if units in m.units]
            *others, last = sorted(names, key=lambda name: name not in DEFAULTS.values())
            instead = ", or --experts channels" if WITHIN in self.units else ""
            raise InputError(
                f"The method {self.name} scores {self.units[0]} of an FFN, and a unit of "
                f"{family.model_type} is one of its {units}; use --method {', '.join(others)} or "
                f"{last}{instead}."
            )

    def check_activation(self, mode: str, activation: str, family: "Family") -> None:
        """Modes that look inside the FFN know the derivative of some activations only."""
        from compressor.scoring.methods.activations import known

        if "gated" in self.wants(mode) and activation not in known(family):
            raise InputError(
                f"The mode {mode} knows the activations {', '.join(known(family))}, and this model "
                f"has {activation!r}; use --method {self.name}:bip, or another method."
            )

    def wants(self, mode: str) -> frozenset[str]:
        return self.modes[self._pattern(mode)]

    def choose_grains(self, **choices: str | None) -> Grains | None:
        """The method's grains, replaced by those in `choices` that are not None."""
        choices = {name: value for name, value in choices.items() if value is not None}
        for name in choices:
            if name not in self.free_grains:
                takers = [m.name for m in METHODS.values() if name in m.free_grains]
                raise InputError(
                    f"--{name} does not apply to the method {self.name}, but to "
                    f"{', '.join(takers)}."
                )
        return self.grains and replace(self.grains, **choices)

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


def _later(name: str) -> Callable:
    """A function or class of a module of this package, which is imported when it is first called."""
    module, _, function = name.partition(".")

    def call(*args, **named):
        return getattr(import_module(f"{__name__}.{module}"), function)(*args, **named)

    return call


def units_of(family: "Family") -> str:
    """What a unit of a family's FFN is, in the plural."""
    if family.whole_experts:
        return EXPERTS
    return WITHIN if family.experts else CHANNELS


GRADIENTS = frozenset({"gradients"})
ROUTED = frozenset({"moments", "gram", "routed"})
BIP_MODES = {
    "bip-gram": frozenset({"moments", "gated", "gram"}),
    "bip-energy": frozenset({"moments", "gated"}),
    "bip-gated": frozenset({"moments", "gated"}),
    "bip": frozenset({"moments"}),
}


def _preset(name: str, part: str, fine: str) -> Method:
    """A score as LLM-Pruner publishes it: one part alone, of the mean gradient."""
    grains = Grains("vector", fine, gradient="mean")
    modes = {part: GRADIENTS}
    observe, combine = _later("hywia.GrainTokens"), _later("fusing.combine")
    units = (CHANNELS, EXPERTS, WITHIN)
    return Method(name, None, modes, observe, combine, grains, ("reduce",), units=units)


METHODS = {
    method.name: method
    for method in (
        Method("llm-bip", _later("llm_bip.score"), BIP_MODES, units=(CHANNELS, WITHIN)),
        Method(
            "besa",
            _later("llm_bip.score"),
            {"bip-gram": BIP_MODES["bip-gram"]},
            allocate="besa",
        ),  # units in the order of their energy in the block's output
        Method(
            "hywia",
            None,
            {"attention": GRADIENTS, "fixed:a": GRADIENTS, "calibrated": GRADIENTS},
            _later("hywia.HybridGrains"),
            _later("fusing.combine"),
            Grains(),
            ("coarse", "fine", "reduce"),
        ),
        _preset("taylor", "fine", "first"),
        _preset("taylor-vector", "coarse", "first"),
        _preset("taylor-mix", "fine", "mix"),
        Method("kfac", None, {"trace": GRADIENTS}, _later("kfac.Kfac"), degree=2),
        Method("mask-fisher", None, {"tokens": GRADIENTS}, _later("kfac.MaskFisher"), degree=2),
        Method(
            "wanda-sp",
            _later("baselines.wanda_sp"),
            {"l2": frozenset({"moments"})},
            units=(CHANNELS, WITHIN),
        ),
        Method(
            "reap", _later("routed.reap"), {"output": ROUTED, "total": ROUTED}, units=(EXPERTS,)
        ),
        Method(
            "loss",
            _later("routed.reap"),
            {"hidden": ROUTED},
            combine=_later("routed.measured"),
            units=(EXPERTS,),
        ),
        Method("frequency", _later("routed.frequency"), {"share": ROUTED}, units=(EXPERTS,)),
        Method(
            "magnitude",
            _later("baselines.magnitude"),
            {"l2": frozenset(), "l1": frozenset()},
            units=(CHANNELS, EXPERTS, WITHIN),
        ),
        Method(
            "random",
            _later("baselines.random"),
            {"uniform": frozenset()},
            units=(CHANNELS, EXPERTS, WITHIN),
        ),
    )
}
DEFAULTS = {CHANNELS: "llm-bip", EXPERTS: "reap", WITHIN: "llm-bip"}
DEFAULT_METHOD, DEFAULT_OF_EXPERTS, _ = DEFAULTS.values()


def default_allocation(method: str) -> str:
    """Of an unknown method, which is refused elsewhere, any."""
    return METHODS[method].allocate if method in METHODS else "uniform"
