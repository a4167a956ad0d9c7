"""Layouts: which plans each can hold, and what a plan is written as."""

from compressor.config.choices import check_layout_name
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import Family
from compressor.model.per_layer import has_uniform
from compressor.planning.plan import Plan


def check_layout(plan: Plan, layout: str, checkpoint: Checkpoint) -> None:
    check_layout_name(layout)
    widths, family = plan.widths(), checkpoint.family
    if layout == "uniform" and not has_uniform(family):
        whole = {"attention": checkpoint.heads, "ffn": checkpoint.config[family.ffn_width_key]}
        if any(width != whole for width in widths):
            raise InputError(no_uniform(family))
    if layout == "uniform" and any(w != widths[0] for w in widths):
        raise InputError(
            "The plan has blocks of different widths (global allocation, or protected blocks), which "
            "no stock model class loads; plan without, or use --layout per-layer (loads with code of "
            "its own) or padded (zeros, to evaluate it)."
        )


def no_uniform(family: Family) -> str:
    return (
        f"transformers' class of {family.model_type} has {family.ffn_per_hidden} x hidden FFN channels "
        "and as many heads as fit into the hidden size, always, and its slopes (ALiBi) are those of all "
        "heads, so no cut of it is in the uniform layout; use --layout per-layer (loads with code of "
        "its own) or padded (zeros, to evaluate it)."
    )


def check_built(checkpoint: Checkpoint, layout: str) -> None:
    if layout == "per-layer" and not checkpoint.family.own_widths:
        raise InputError(
            f"There is no code for {checkpoint.family.model_type} blocks of different widths; use "
            "--layout uniform, or padded (zeros, to evaluate it)."
        )


def layout_of(plan: Plan, layout: str, family: Family) -> str:
    """What a plan is written as: `per-layer` is `uniform` where all blocks are alike."""
    widths = plan.widths()
    equal = has_uniform(family) and all(width == widths[0] for width in widths)
    return "uniform" if layout == "per-layer" and equal else layout
