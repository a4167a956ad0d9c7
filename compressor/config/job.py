"""A whole job: its source, its destination, and a config a stage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.config.layouts import WriteConfig
from compressor.config.options import name_of, options_of, parsed
from compressor.config.plan import PlanConfig
from compressor.config.quantization import QuantConfig
from compressor.config.recovery import RecoveryConfig
from compressor.config.repair import RepairConfig
from compressor.config.runtime import Runtime
from compressor.config.score import ScoreConfig
from compressor.config.sparse import SparseConfig
from compressor.config.target import targets_of
from compressor.config.text import TextConfig
from compressor.errors import InputError

GROUPS: dict[str, type] = {
    "text": TextConfig,
    "score": ScoreConfig,
    "plan": PlanConfig,
    "repair": RepairConfig,
    "write": WriteConfig,
    "recovery": RecoveryConfig,
    "quantization": QuantConfig,
    "runtime": Runtime,
}
# The groups that zeroing weights has, besides its own.
SPARSIFY = ("text", "quantization", "runtime")
SIZES = ("keep", "keep_blocks", "target", "target_params", "target_bytes", "budget")
# What `fast` stands for: no training, and a quarter of the text.
FAST = {"repair": "ridge", "calibration_tokens": 16_384}
PART = re.compile(r"(.+)\[(-?\d*:-?\d*)\]")  # TEXT[A:B]


@dataclass(frozen=True)
class JobConfig:
    """What `compress` was asked for; with `sparse`, what `sparsify` was."""

    source: Path
    dest: Path
    text: TextConfig = field(default_factory=TextConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    quantization: QuantConfig = field(default_factory=QuantConfig)
    runtime: Runtime = field(default_factory=Runtime)
    sparse: SparseConfig | None = None

    @property
    def cuts(self) -> bool:
        """Whether units are removed; what keeps everything is quantised as it is."""
        if self.sparse is not None:
            return False
        if self.plan.drop_blocks is not None or self.plan.keep_hidden is not None:
            return True
        absolute = any(t.hard or t.value != 1 for t in self.plan.targets)
        return absolute or not self.quantization.wanted

    def with_options(self, *only: str, **options) -> "JobConfig":
        """This config with other options, by their names in Python: `samples=8, repair="ridge"`.

        InputError for a name that no option has. only: the groups whose options may be set; by default
        all.
        """
        options = spelt_out(options)
        groups: dict[str, type] = {} if self.sparse is None else {"sparse": SparseConfig}
        offered = only or (GROUPS if self.sparse is None else SPARSIFY)
        groups |= {name: GROUPS[name] for name in offered}
        sizes = {name: options.pop(name) for name in SIZES if "plan" in groups and name in options}
        changed: dict[str, dict] = {}
        for group, kind in groups.items():
            for each in options_of(kind):
                if name_of(each) in options:
                    value = parsed(each, options.pop(name_of(each)))
                    changed.setdefault(group, {})[each.name] = value
        if options:
            raise InputError(
                f"There is no option {next(iter(options))!r}{' here' if only else ''}; "
                f"the options are {', '.join(names(groups))}."
            )
        if sizes:
            changed.setdefault("plan", {})["targets"] = targets_of(**sizes)
        return replace(self, **{g: replace(getattr(self, g), **c) for g, c in changed.items()})


def job_config(source: str | Path, dest: str | Path, **options) -> JobConfig:
    """The config of `compress` with these options, by their names in Python."""
    return JobConfig(Path(source), Path(dest)).with_options(**options)


def sparsify_config(source: str | Path, dest: str | Path, **options) -> JobConfig:
    """The config of `sparsify` with these options."""
    return JobConfig(Path(source), Path(dest), sparse=SparseConfig()).with_options(**options)


def names(groups: Mapping[str, type]) -> list[str]:
    in_groups = [name_of(each) for group in groups.values() for each in options_of(group)]
    return [*(SIZES if "plan" in groups else ()), *in_groups]


def spelt_out(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of which one says two things, as two: `TEXT[A:B]`, `METHOD:MODE`, `refine:8`, `w4a16:64`,
    `lora:500`, and a pair of calibration texts. `fast` is `FAST`, but for what else is said.
    """
    spelt = dict(options)
    if spelt.pop("fast", False):
        spelt = FAST | spelt
    if isinstance(texts := spelt.get("calibration"), list | tuple):
        if not 1 <= len(texts) <= 2:
            raise InputError(f"--calibration takes one text or two, not {len(texts)}.")
        spelt |= dict(zip(("calibration", "calibration_also"), texts, strict=False))
    for name in ("calibration", "calibration_also", "evaluation"):
        text = spelt.get(name)
        if isinstance(text, str) and (match := PART.fullmatch(text)) and not Path(text).exists():
            spelt[name], spelt[f"{name}_range"] = match.groups()
    for name, other, number in (
        ("method", "mode", False),
        ("repair", "refine_epochs", True),
        ("quantize", "quantize_group", True),
        ("recover", "recover_steps", True),
    ):
        value = spelt.get(name)
        if isinstance(value, str) and ":" in value:
            spelt[name], _, rest = value.partition(":")
            spelt[other] = whole(rest, name, value) if number else rest
    return spelt


def whole(text: str, name: str, value: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--{name} {value}: {text!r} is not a whole number.") from None
