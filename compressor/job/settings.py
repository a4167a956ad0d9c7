"""What `compress` was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.config.choices import ALLOCATIONS, LAYOUTS, needs_text
from compressor.config.quantization import Quantization
from compressor.config.recovery import Recovery
from compressor.config.repair import DEFAULT_REPAIR
from compressor.config.sparse import Weights
from compressor.planning.target import Target
from compressor.scoring.methods import DEFAULT_METHOD, METHODS
from compressor.scoring.methods.grains import Grains

if TYPE_CHECKING:  # options are judged before torch is imported, which takes seconds
    from compressor.model.checkpoint import Checkpoint
    from compressor.model.families import Family


DEFAULT_CALIBRATION = "stdlib"


@dataclass(frozen=True)
class Settings:
    """The options of `compress`, as the command line documents them."""

    source: Path
    dest: Path
    targets: Sequence[Target]
    method: str = DEFAULT_METHOD
    mode: str | None = None
    coarse: str | None = None
    fine: str | None = None
    reduce: str | None = None
    allocate: str = "uniform"
    layout: str = "uniform"
    container: str = "auto"
    calibration: str = DEFAULT_CALIBRATION
    calibration_range: str | None = None
    calibration_also: str | None = None
    evaluation: str | None = None
    evaluation_range: str | None = None
    samples: int | None = None
    length: int = 512
    statistics: str = "dense"
    select: str = "score"
    kv_cost: str = "score"
    repair: str = DEFAULT_REPAIR
    refine_epochs: int | None = None
    align: int | None = None
    protect: tuple[int, ...] = ()
    tp: int = 1
    device: str | None = None
    dtype: str = "auto"
    max_memory: float | None = None
    work_dir: Path | None = None
    seed: int = 0
    weights: Weights = field(default_factory=Weights)
    recovery: Recovery = field(default_factory=Recovery)
    quantization: Quantization = field(default_factory=Quantization)
    resume: bool = False
    overwrite: bool = False
    verify: bool = True
    max_perplexity_ratio: float | None = 3.0

    @property
    def on_device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cuts(self) -> bool:
        """Whether anything is removed; what keeps everything is quantised as it is."""
        absolute = any(t.kind in ("params", "bytes") or t.value != 1 for t in self.targets)
        return self.weights.single or not self.quantization.wanted or absolute

    @property
    def reads_calibration(self) -> bool:
        """Whether the method, the selection, the repair or the quantisation looks at activations."""
        if self.quantization.learns:
            return True
        if not self.cuts:
            return False
        if self.weights.single:
            return self.method != "magnitude"
        method = METHODS[self.method]
        looks = bool(method.wants(method.check_mode(self.mode)))
        chooses = needs_text(self.select, self.kv_cost)
        return looks or chooses or self.repair != "none" or self.judged

    @property
    def judged(self) -> bool:
        """Whether a part of the calibration text judges allocations."""
        return not self.weights.single and ALLOCATIONS[self.allocate].measured

    def kept_states(self, blocks: int) -> int:
        """How many hidden states of every calibration token are kept at once."""
        from compressor.measuring.probes import FORWARDS

        if self.weights.single:  # what enters and leaves a block, and should leave it, on two paths
            return 5
        # A backward keeps what enters every block; a forward what enters and leaves one; a repair's
        # two paths the streams before, within and after one.
        states = 2 if self.repair == "none" else 6
        if self.judged:
            states = max(states, 6)  # those, the streams within the block, and what enters o_proj
            if ALLOCATIONS[self.allocate].probing:
                states += 2 * FORWARDS  # cuts pass half of the blocks, and all are kept
        return states if METHODS[self.method].observe is None else max(states, blocks + 3)


def target_name(target: Target) -> str:
    """`keep-0.7`, `params-7e+09`; a whole number of more than six digits with all of them."""
    value, short = target.value, f"{target.value:g}"
    exact = f"{value:.0f}" if value % 1 == 0 and float(short) != value else short
    return f"{target.kind}-{exact}"


def wanted_results(settings: Settings, family: "Family") -> list[tuple[str, Target, Settings]]:
    """Name, target and settings of every result: one a target, `--layout all` one a layout of each.

    The uniform layout is left out where blocks are to differ, and where a family's class has one width.
    """
    if settings.layout != "all":
        return [(target_name(target), target, settings) for target in settings.targets]
    from compressor.model.per_layer import has_uniform

    same = ALLOCATIONS[settings.allocate].alike and not settings.protect and has_uniform(family)
    return [
        (f"{target_name(target)}-{layout}", target, replace(settings, layout=layout))
        for target in settings.targets
        for layout in LAYOUTS
        if same or layout != "uniform"
    ]


def decisive(settings: Settings, checkpoint: "Checkpoint", *tokens) -> dict[str, str]:
    """What decides the scores and the cut, by the option's name: a resumed job must not change it."""
    from compressor.planning.budget import identity

    free = {"dest", "max_memory", "work_dir", "resume", "overwrite"}
    free |= {"targets", "weights", "recovery", "quantization"}  # in parts, below or by their jobs
    given = {
        f"--{option.name.replace('_', '-')}": str(getattr(settings, option.name))
        for option in fields(settings)
        if option.name not in free
    }
    given["--budget"] = " ".join(sorted({identity(t.budget) for t in settings.targets}))
    given["the targets"] = " ".join(target_name(t) for t in settings.targets)
    for group in (settings.weights, settings.quantization):
        for option in fields(group):
            given[option.metadata["flag"]] = str(getattr(group, option.name))
    given["the source's fingerprint"] = checkpoint.fingerprint
    given["the SHA-256 of its texts"] = str([t and hashes(t.protocol) for t in tokens])
    return given


def hashes(protocol: dict) -> str:
    """The SHA-256 of a text, and that of the one it was mixed with."""
    return " ".join(p["sha256"] for p in (protocol, protocol.get("also")) if p)


def chosen_grains(settings: Settings) -> Grains | None:
    """What weighs the gradients, if the method does; an option that does not apply is refused."""
    given = {"coarse": settings.coarse, "fine": settings.fine, "reduce": settings.reduce}
    return METHODS[settings.method].choose_grains(**given)
