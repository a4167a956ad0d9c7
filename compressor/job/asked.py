"""Options judged by themselves, before the source is read and before torch is imported: at once.

What needs the source is in `checks.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compressor.config.choices import (
    ALLOCATIONS,
    NO_EVALUATION,
    check_allocation,
    check_dtype,
    check_selection,
    check_statistics,
)
from compressor.config.hub_names import on_the_hub
from compressor.config.job import JobConfig
from compressor.config.layouts import ALL, UNIFORM, UNLIKE, WriteConfig, check_layout_name
from compressor.config.options import check_values, given_options
from compressor.config.packing import SCHEMES
from compressor.config.plan import PlanConfig
from compressor.config.recovery import RecoveryConfig
from compressor.config.repair import RepairConfig
from compressor.config.runtime import Runtime
from compressor.config.score import ScoreConfig
from compressor.config.target import target_name
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.job.depth.asked import check_depth, check_no_depth
from compressor.job.destination import check_dest, check_outside
from compressor.job.hidden.asked import check_hidden, check_no_hidden
from compressor.job.needs import chosen_method
from compressor.job.resolve import resolve
from compressor.scoring.methods import DEFAULT_METHOD, METHODS
from compressor.text.texts import is_there, names_a_file

SEEDS = 2**32


def check_asked(asked: JobConfig) -> JobConfig:
    """The config with what was left open decided; `InputError`, by the option's name, for what no source
    could make right.
    """
    config = resolve(asked)
    plan = asked.plan
    sized = plan.targets or plan.drop_blocks is not None or plan.keep_hidden is not None
    if not (sized or asked.sparse or asked.quantization.wanted):
        raise InputError(
            "Say how small: --keep, --keep-blocks, --target, --drop-blocks or --keep-hidden; or, to "
            "quantise alone, --quantize "
            f"{' or '.join(SCHEMES)}. (`compressor sparsify` makes zeros.)"
        )
    if config.sparse is not None:
        config.sparse.check()
    check_runtime(config.runtime)
    check_values(config.text)
    if config.cuts:
        check_method(config.score)
    check_source(config.source)
    check_dest(config.source, config.dest, config.runtime)
    check_texts(config.text)
    config.quantization.check()
    check_parents(config)
    if config.cuts:
        config.recovery.check()
        check_depth(asked)
        check_hidden(asked.plan, asked.score, asked.write.layout)
        check_cut(config)
    elif config.sparse is None:
        check_nothing_cut(asked)
    return config


def check_runtime(runtime: Runtime) -> None:
    """Numbers, and the dtype."""
    check_values(runtime)
    if runtime.seed >= SEEDS:
        raise InputError(f"--seed must be below {SEEDS:,}, not {runtime.seed:,}.")
    memory, ratio = runtime.max_memory, runtime.max_perplexity_ratio
    if memory is not None and not 1 <= memory < math.inf:
        raise InputError(
            f"--max-memory is a number of bytes from 1 up, such as 8GB, not {memory:,.10g}."
        )
    if ratio is not None and not ratio > 0:
        raise InputError(f"--max-perplexity-ratio is a number above 0, or off, not {ratio:g}.")
    check_dtype(runtime.dtype)


def check_scoring(asked: JobConfig) -> JobConfig:
    """What is asked of the stage `score`, whose destination is a file; decided as of a job."""
    config = resolve(asked)
    check_runtime(config.runtime)
    check_values(config.text)
    check_values(config.plan)
    check_no_depth(config.plan)
    check_values(config.score)
    check_no_hidden(config.plan)
    check_method(config.score)
    check_allocation(config.plan.allocate)
    check_selection(config.score.select, config.score.kv_cost)
    config.repair.check()
    check_source(config.source)
    check_outside(config.dest, config.source.resolve(), "OUT")
    check_texts(config.text)
    return config


def check_planning(asked: JobConfig) -> JobConfig:
    """What is asked of the stage `plan`; decided."""
    check_no_depth(asked.plan)
    check_no_hidden(asked.plan)
    plan = replace(asked.plan, allocate=asked.plan.allocate or "uniform")
    layout = asked.write.layout
    if len(plan.targets) != 1:
        raise InputError(
            "A plan has one target: give one of --keep, --keep-blocks, --target, and once."
        )
    check_allocation(plan.allocate)
    check_layout_name(layout)
    if ALLOCATIONS[plan.allocate].equal(layout == UNIFORM):
        check_protect(plan.protect, layout)
    return replace(asked, plan=plan)


def check_applying(
    source: Path,
    dest: Path,
    text: TextConfig,
    repair: RepairConfig,
    writing: WriteConfig,
    runtime: Runtime,
) -> None:
    """What is asked of the stage `cut`."""
    check_runtime(runtime)
    check_values(text)
    check_layout_name(writing.layout)
    repair.check()
    check_source(source)
    check_dest(source, dest, runtime)
    check_texts(text)


def check_recovery(
    source: Path, dest: Path, recovery: RecoveryConfig, text: TextConfig, runtime: Runtime
) -> None:
    """What is asked of a training alone."""
    if recovery.method == "none":
        raise InputError("--recover none trains nothing; give lora or distill.")
    recovery.check()
    check_runtime(runtime)
    check_values(text)
    check_source(source)
    check_dest(source, dest, runtime)
    check_texts(text)


def check_method(score: ScoreConfig) -> None:
    """The method, its mode, and what weighs its gradients."""
    if score.method not in METHODS:
        raise InputError(f"The method {score.method!r} is not one of {', '.join(METHODS)}.")
    METHODS[score.method].check_mode(score.mode)
    chosen_method(score)


def check_cut(config: JobConfig) -> None:
    """What is asked of a cut of channels."""
    score, plan, layout = config.score, config.plan, config.write.layout
    check_values(plan)
    check_values(score)
    check_targets(plan, config.quantization.wanted)
    check_statistics(score.statistics)
    check_selection(score.select, score.kv_cost)
    check_allocation(plan.allocate)
    config.repair.check()
    if layout != ALL:
        check_layout_name(layout)
    if score.statistics == "pruned":
        check_pruned_statistics(score, plan)
    if plan.allocate != "besa" and plan.besa_sampling is not None:
        raise InputError("besa_sampling is for what learns; add --allocate besa, or leave it out.")
    if layout == UNIFORM and not ALLOCATIONS[plan.allocate].alike:
        raise InputError(
            f"--allocate {plan.allocate} gives every block its own widths, and in the uniform "
            f"layout all are equal; add {UNLIKE}, or leave --allocate out."
        )
    if plan.targets:
        check_protect(plan.protect, layout)
    if config.quantization.wanted and layout != UNIFORM:
        raise InputError(
            f"--layout {layout} is not for the kernels that --quantize packs weights for: they "
            "expect equal blocks, and no zeros between; leave one out."
        )


def check_pruned_statistics(score: ScoreConfig, plan: PlanConfig) -> None:
    if METHODS[score.method].observe is not None:
        raise InputError(
            f"Statistics of the pruned model need a forward pass; {score.method} runs backward. Leave "
            f"statistics out, or choose another --method, such as {DEFAULT_METHOD}."
        )
    if len(plan.targets) > 1:
        raise InputError(
            "Statistics of the pruned model are scored for one target; give one ratio."
        )
    if plan.allocate != "uniform":
        raise InputError(
            "Statistics of the pruned model cut each block as it is scored, and --allocate "
            f"{plan.allocate} finds the widths when all are; leave one of them out."
        )


def check_protect(protect: Sequence[int], layout: str) -> None:
    if protect and layout == UNIFORM:
        raise InputError(
            "--protect leaves some blocks wider than others, and in the uniform layout all are "
            f"equal; add {UNLIKE}, or leave --protect out."
        )


def check_targets(plan: PlanConfig, quantized: bool = False) -> None:
    for target in plan.targets:
        if target.kind in ("keep", "keep-blocks") and not 0 < target.value < 1:
            raise InputError(f"--{target.kind} must lie between 0 and 1, not {target.value:g}.")
        if quantized and target.kind == "bytes":
            raise InputError(
                "A --target in bytes counts unquantised ones, and --quantize leaves fewer; give --keep, "
                "--keep-blocks or a number of parameters."
            )
    names = [target_name(target) for target in plan.targets]
    for target, name in zip(plan.targets, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{target.flag} is given twice; leave one of them out.")


def check_parents(config: JobConfig) -> None:
    """Refuse an option without the one that it belongs to."""
    for group, parent, wanted in (
        (config.quantization, "--quantize", config.quantization.wanted),
        (config.recovery, "--recover", config.recovery.method != "none"),
    ):
        others = [flag for flag in given_options(group) if flag != parent]
        if others and not wanted:
            ways = "w4a16" if parent == "--quantize" else "lora or distill"
            raise InputError(f"{others[0]} needs {parent} {ways}.")
    text = config.text
    if text.evaluation in (None, NO_EVALUATION) and text.evaluation_range is not None:
        raise InputError("evaluation_range needs --evaluation.")


def check_nothing_cut(asked: JobConfig) -> None:
    """Refuse options of cuts where a whole source is quantised."""
    groups = (asked.score, asked.plan, asked.repair, asked.write, asked.recovery)
    others = [flag for group in groups for flag in given_options(group)]
    if others:
        raise InputError(
            f"{others[0]} is for cuts, and nothing is cut; leave it out, or give --keep below 1."
        )


def check_texts(text: TextConfig) -> None:
    """Refuse the name of a file that is not there; what else it may be is found out on reading."""
    for name in ("calibration", "calibration_also", "evaluation"):
        source = getattr(text, name)
        if source and names_a_file(source) and not is_there(source):
            raise InputError(f"There is no file {source!r} (--{name.replace('_', '-')}).")


def check_source(source: Path) -> None:
    if not source.is_dir() and not on_the_hub(source):
        raise InputError(
            f"There is no folder {str(source)!r}; give a checkpoint folder, or ORG/NAME of the hub."
        )
