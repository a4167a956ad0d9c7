"""Options judged by themselves, before the source is read and before torch is imported: at once.

What needs the source is in `checks.py`, which begins with this.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from compressor.config.choices import (
    ALLOCATIONS,
    NO_EVALUATION,
    check_allocation,
    check_dtype,
    check_layout_name,
    check_selection,
    check_statistics,
)
from compressor.config.repair import check_kind
from compressor.errors import InputError
from compressor.job.checks_sparse import channel_options, check_alone
from compressor.job.destination import check_dest
from compressor.job.settings import Settings, chosen_grains, target_name
from compressor.scoring.methods import DEFAULT_METHOD, METHODS
from compressor.text.texts import names_a_file

SEEDS = 2**32
LEAST = {"samples": 1, "length": 2, "align": 1, "tp": 1, "refine_epochs": 1, "seed": 0}


def check_asked(settings: Settings) -> None:
    """Refuse what no source could make right; `InputError` by the option's name."""
    settings.weights.check(settings.method)
    check_method_asked(settings)
    check_source(settings)
    check_dest(settings)
    check_texts(settings)
    settings.quantization.check()
    check_parents(settings)
    if settings.weights.single:
        check_alone(settings)
        return
    if not settings.cuts:
        check_nothing_cut(settings)
        return
    settings.recovery.check()
    check_cut(settings)


def check_method_asked(settings: Settings) -> None:
    """The method and what all of them take: numbers, the dtype."""
    check_counts(settings)
    check_dtype(settings.dtype)
    if settings.weights.single:
        return
    if settings.method not in METHODS:
        raise InputError(f"The method {settings.method!r} is not one of {', '.join(METHODS)}.")
    method = METHODS[settings.method]
    method.check_mode(settings.mode)
    chosen_grains(settings)


def check_counts(settings: Settings) -> None:
    for name, least in LEAST.items():
        given = getattr(settings, name)
        if given is not None and given < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {least}, not {given}.")
    if settings.seed >= SEEDS:
        raise InputError(f"--seed must be below {SEEDS:,}, not {settings.seed:,}.")
    memory, ratio = settings.max_memory, settings.max_perplexity_ratio
    if memory is not None and not 1 <= memory < math.inf:
        raise InputError(
            f"--max-memory is a number of bytes from 1 up, such as 8GB, not {memory:,.10g}."
        )
    if ratio is not None and not ratio > 0:
        raise InputError(f"--max-perplexity-ratio is a number above 0, or off, not {ratio:g}.")


def check_cut(settings: Settings) -> None:
    """What is asked of a cut of channels."""
    check_targets(settings)
    check_statistics(settings.statistics)
    check_selection(settings.select, settings.kv_cost)
    check_allocation(settings.allocate)
    check_kind(settings.repair, settings.refine_epochs)
    if settings.layout != "all":
        check_layout_name(settings.layout)
    if settings.statistics == "pruned" and METHODS[settings.method].observe is not None:
        raise InputError(
            f"--statistics pruned needs a forward pass; {settings.method} runs backward. Leave "
            f"--statistics out, or choose another --method, such as {DEFAULT_METHOD}."
        )
    if settings.statistics == "pruned" and len(settings.targets) > 1:
        raise InputError("--statistics pruned scores for one target; give one ratio.")
    if settings.statistics == "pruned" and settings.allocate != "uniform":
        raise InputError(
            "--statistics pruned cuts each block as it is scored, and --allocate "
            f"{settings.allocate} finds the widths when all are; leave one of them out."
        )
    if settings.allocate != "besa" and settings.weights.sampling is not None:
        raise InputError(
            "--besa-sampling is for what learns; add --allocate besa, or leave it out."
        )
    if settings.layout == "uniform" and not ALLOCATIONS[settings.allocate].alike:
        raise InputError(
            f"--allocate {settings.allocate} gives every block its own widths, and in the uniform "
            "layout all are equal; add --layout per-layer (loads with code of its own) or padded "
            "(zeros, to evaluate it), or leave --allocate out."
        )
    check_protect(settings.protect, settings.layout)
    if settings.quantization.wanted and settings.layout != "uniform":
        raise InputError(
            f"--layout {settings.layout} is not for the kernels that --quantize packs weights for: they "
            "expect equal blocks, and no zeros between; leave one out."
        )


def check_protect(protect: Sequence[int], layout: str) -> None:
    if protect and layout == "uniform":
        raise InputError(
            "--protect leaves some blocks wider than others, and in the uniform layout all are "
            "equal; add --layout per-layer (loads with code of its own) or padded (for evaluation), "
            "or leave --protect out."
        )


def check_targets(settings: Settings) -> None:
    for target in settings.targets:
        if target.kind in ("keep", "keep-blocks") and not 0 < target.value < 1:
            raise InputError(f"--{target.kind} must lie between 0 and 1, not {target.value:g}.")
        if settings.quantization.wanted and target.kind == "bytes":
            raise InputError(
                "--target-bytes counts unquantised bytes, and --quantize leaves fewer; give --keep, "
                "--keep-blocks or --target-params."
            )
    names = [target_name(target) for target in settings.targets]
    for target, name in zip(settings.targets, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{target.flag} is given twice; leave one of them out.")


def check_parents(settings: Settings) -> None:
    """Refuse an option without the one that it belongs to."""
    for group, parent, wanted in (
        (settings.quantization, "--quantize", settings.quantization.wanted),
        (settings.recovery, "--recover", settings.recovery.method != "none"),
    ):
        for each in fields(group):
            flag = each.metadata["flag"]
            if not wanted and flag != parent and getattr(group, each.name) != each.default:
                raise InputError(
                    f"{flag} goes with a {parent} that is not none; add that, or leave {flag} out."
                )
    if settings.evaluation in (None, NO_EVALUATION) and settings.evaluation_range is not None:
        raise InputError("--evaluation-range goes with --evaluation; add that, or leave it out.")


def check_nothing_cut(settings: Settings) -> None:
    """Refuse options of cuts where a whole source is quantised."""
    others = channel_options(settings)
    if settings.method != DEFAULT_METHOD and not settings.weights.single:
        others.insert(0, "--method")
    if others:
        raise InputError(
            f"{others[0]} is for cuts, and nothing is cut; leave it out, or give --keep below 1."
        )


def check_texts(settings: Settings) -> None:
    """Refuse the name of a file that is not there; what else it may be is found out on reading."""
    for name in ("calibration", "calibration_also", "evaluation"):
        given = getattr(settings, name)
        if given and names_a_file(given) and not Path(given).exists():
            raise InputError(f"There is no file {given!r} (--{name.replace('_', '-')}).")


def check_source(settings: Settings) -> None:
    if not settings.source.is_dir():
        raise InputError(f"There is no folder {str(settings.source)!r}; give a checkpoint folder.")
