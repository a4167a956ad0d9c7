"""What `compress` was asked for, and everything that can be refused before the work begins."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from compressor.allocation import ALLOCATIONS, check_allocation, protected, solve
from compressor.allocation.besa import check_activation, check_sampling
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.lattice import lattice
from compressor.methods import DEFAULT_METHOD, METHODS
from compressor.methods.hywia import Grains
from compressor.plan import Costs, Target
from compressor.recovery.precision import check_memory
from compressor.recovery.settings import Recovery
from compressor.repair import DEFAULT_REPAIR, check_repair
from compressor.writing import check_layout_name, check_space, choose_container

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
    besa_sampling: str = "deterministic"
    layout: str = "uniform"
    container: str = "auto"
    calibration: str = DEFAULT_CALIBRATION
    calibration_range: str | None = None
    evaluation: str | None = None
    evaluation_range: str | None = None
    samples: int = 128
    length: int = 512
    statistics: str = "dense"
    repair: str = DEFAULT_REPAIR
    align: int | None = None
    protect: tuple[int, ...] = ()
    tp: int = 1
    device: str | None = None
    dtype: str = "auto"
    max_memory: int | None = None
    work_dir: Path | None = None
    seed: int = 0
    recovery: Recovery = field(default_factory=Recovery)
    resume: bool = False
    overwrite: bool = False
    verify: bool = True
    max_perplexity_ratio: float | None = 3.0

    @property
    def on_device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


def target_name(target: Target) -> str:
    return f"{target.kind}-{target.value:g}"


def decisive(settings: Settings, checkpoint: Checkpoint, *tokens) -> dict[str, str]:
    """What decides the scores and the cut, by the option's name: a resumed job must not change it."""
    free = {"targets", "dest", "max_memory", "work_dir", "recovery", "resume", "overwrite"}
    given = {
        f"--{option.name.replace('_', '-')}": str(getattr(settings, option.name))
        for option in fields(settings)
        if option.name not in free
    }
    given["the targets"] = " ".join(target_name(t) for t in settings.targets)
    given["the source's fingerprint"] = checkpoint.fingerprint
    given["the SHA-256 of its texts"] = str([t and t.protocol["sha256"] for t in tokens])
    return given


def check_before_starting(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse at once what would fail hours later."""
    check_method(settings, checkpoint)
    check_dest(settings)
    settings.recovery.check()
    if len({target_name(t) for t in settings.targets}) < len(settings.targets):
        raise InputError("The same target is given twice.")
    if settings.statistics not in ("dense", "pruned"):
        raise InputError(f"--statistics is dense or pruned, not {settings.statistics!r}.")
    if settings.statistics == "pruned" and METHODS[settings.method].observe is not None:
        raise InputError(
            f"--statistics pruned needs a forward pass; {settings.method} runs backward."
        )
    if settings.statistics == "pruned" and len(settings.targets) > 1:
        raise InputError("--statistics pruned scores for one target; give one ratio.")
    check_allocation(settings.allocate)
    check_sampling(settings.besa_sampling)
    if settings.allocate == "besa":
        check_activation(checkpoint.config.get("hidden_act", "silu"))
    if settings.statistics == "pruned" and settings.allocate != "uniform":
        raise InputError(
            "--statistics pruned cuts each block as it is scored, and --allocate "
            f"{settings.allocate} finds the widths when all are; leave one of them out."
        )
    check_repair(settings.repair, checkpoint)
    check_layout_name(settings.layout)
    if settings.layout == "uniform" and not ALLOCATIONS[settings.allocate].alike:
        raise InputError(
            f"--allocate {settings.allocate} gives every block its own widths, and in the uniform "
            "layout all are equal; add --layout padded (zeros, to evaluate it), or leave "
            "--allocate out."
        )
    widths = lattice(checkpoint, settings.align, settings.tp, settings.container)
    protect = protected(settings.protect, checkpoint)
    if protect and settings.layout == "uniform":
        raise InputError(
            "--protect leaves some blocks wider than others, and in the uniform layout all are "
            "equal; add --layout padded (for evaluation), or leave --protect out."
        )
    needed = largest = 0
    for target in settings.targets:
        chosen = solve(target, checkpoint, widths, protect)
        choose_container(checkpoint, chosen[0]["attention"], settings.container)
        size = Costs.of(checkpoint).size(chosen, checkpoint.units, "bytes")
        size = checkpoint.bytes if settings.layout == "padded" else size
        needed, largest = needed + size, max(largest, size)
        if settings.recovery.method != "none":
            left = Costs.of(checkpoint).size(chosen, checkpoint.units, "params")
            check_memory(
                left, checkpoint.dtype, settings.on_device, settings.dtype, settings.max_memory
            )
    if settings.recovery.method != "none":
        needed += largest  # the cut stands until the recovered is judged
    check_space(settings.dest.parent, needed)


def check_method(settings: Settings, checkpoint: Checkpoint) -> None:
    if settings.method not in METHODS:
        raise InputError(f"The method {settings.method!r} is not one of {', '.join(METHODS)}.")
    method = METHODS[settings.method]
    mode = method.check_mode(settings.mode)
    chosen_grains(settings)
    method.check_activation(mode, checkpoint.config.get("hidden_act", "silu"))
    if settings.samples < 1 or settings.length < 2:
        raise InputError(
            f"--samples must be at least 1 and --length at least 2, not {settings.samples} and "
            f"{settings.length}."
        )


def chosen_grains(settings: Settings) -> Grains | None:
    """What weighs the gradients, if the method does; an option that does not apply is refused."""
    given = {"coarse": settings.coarse, "fine": settings.fine, "reduce": settings.reduce}
    return METHODS[settings.method].choose_grains(**given)


def check_dest(settings: Settings) -> None:
    """DEST can be made, and replacing it would not touch the source."""
    dest, source = settings.dest, settings.source.resolve()
    for path in (dest, dest.with_name(dest.name + ".rejected")):
        if path.exists() and not settings.overwrite:
            raise InputError(f"{path} exists; choose another DEST or pass --overwrite.")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is not a folder and is not replaced; choose another DEST.")
        if path.resolve() == source or path.resolve() in source.parents:
            raise InputError(f"{path} holds the source {source}; choose another DEST.")
