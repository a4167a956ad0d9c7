"""Allocation: how many units of each group stay in each block, on the lattice of widths, and which."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.plan import Costs, Plan, Target, limit_of, reached
from compressor.scores import GROUPS, Scores, best

WIDE, ALIGN_WIDE = 2048, 128


@dataclass(frozen=True)
class Lattice:
    """The widths that may be written: FFN widths ascending, and numbers of KV groups ascending."""

    ffn: list[int]
    attention: list[int]


def default_align(width: int) -> int:
    """128 for real models; for small ones the largest power of two that divides, up to width/16."""
    if width >= WIDE:
        return ALIGN_WIDE
    align = 4
    while align * 2 <= width // 16 and width % (align * 2) == 0:
        align *= 2
    return align


def lattice(
    checkpoint: Checkpoint, align: int | None = None, tp: int = 1, container: str = "auto"
) -> Lattice:
    """Widths of the uniform layout that the container can express and `tp` devices can share."""
    family, width = checkpoint.family, checkpoint.units["ffn"]
    if (align is not None and align < 1) or tp < 1:
        raise InputError(f"--align and --tp must be positive, not {align} and {tp}.")
    step = align or default_align(width)
    if tp > 1:
        step = math.lcm(step, ALIGN_WIDE * tp)
    if step > width:
        raise InputError(f"FFN widths in steps of {step} do not exist: the model's is {width}.")
    groups = checkpoint.kv_heads
    rep = checkpoint.heads // groups
    biased = any("bias" in t for t in checkpoint.block_tensors(0))
    bound_by_hidden = (
        family.heads_divide_hidden
        and container != family.container
        and (container == family.model_type or biased or not family.container)
    )
    counts = [
        g
        for g in range(1, groups + 1)
        if (g == groups)
        or ((not bound_by_hidden or checkpoint.hidden_size % (g * rep) == 0) and g % tp == 0)
    ]
    widths = sorted({*range(step, width + 1, step), width})
    return Lattice(widths, counts)


def solve(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[dict[str, int]]:
    """Widths of every block: the largest size on the lattice that is not above the target.

    The share of KV groups that stay is the one nearest above the blocks' share (whole groups are
    few, and one too many costs more than channels do); FFN channels fill the rest exactly.
    """
    costs, units = Costs.of(checkpoint), checkpoint.units
    measure = "bytes" if target.kind == "bytes" else "params"
    limit, whole = limit_of(target, costs)
    cut_blocks = [b for b in range(checkpoint.blocks) if b not in protect]

    def widths(groups: int, channels: int) -> list[dict[str, int]]:
        cut = {"attention": groups, "ffn": channels}
        return [dict(units) if b in protect else cut for b in range(checkpoint.blocks)]

    def size(groups: int, channels: int) -> int:
        return costs.size(widths(groups, channels), units, measure)

    least = size(lattice.attention[0], lattice.ffn[0])
    if least > limit or not cut_blocks:
        raise InputError(
            f"The target {target.kind} {target.value:,g} cannot be reached: the smallest possible is "
            f"{reached(target, costs, least):,.6g} ({least:,} {measure})."
        )
    movable = len(cut_blocks) * sum(units[g] * costs.unit[g][measure] for g in GROUPS)
    share = max(0.0, 1 - (whole - limit) / movable)
    enough = [g for g in lattice.attention if g >= share * units["attention"] - 1e-9]
    # Fewer groups only where the channels alone cannot make room for this many.
    for groups in [
        enough[0],
        *sorted((g for g in lattice.attention if g < enough[0]), reverse=True),
    ]:
        fitting = [c for c in lattice.ffn if size(groups, c) <= limit]
        if fitting:
            return widths(groups, fitting[-1])
    raise AssertionError("the smallest size fits, so some width does")


def protected(blocks: Sequence[int], checkpoint: Checkpoint) -> list[int]:
    """Block numbers, negative ones counted from the end, as sorted non-negative ones."""
    count = checkpoint.blocks
    outside = [b for b in blocks if not -count <= b < count]
    if outside:
        raise InputError(f"--protect names the block {outside[0]}; the model has {count} blocks.")
    return sorted({b % count for b in blocks})


def allocate(
    scores: Scores,
    checkpoint: Checkpoint,
    target: Target,
    align: int | None = None,
    tp: int = 1,
    protect: Sequence[int] = (),
    container: str = "auto",
) -> Plan:
    """Uniform allocation: the best-scored units of every block, as many as the target allows."""
    blocks = checkpoint.blocks
    protect = protected(protect, checkpoint)
    if len(scores.blocks) != blocks or any(
        len(block[g]) != checkpoint.units[g] for block in scores.blocks for g in GROUPS
    ):
        raise InputError(f"The scores do not fit {checkpoint.path}: other numbers of units.")
    chosen = solve(target, checkpoint, lattice(checkpoint, align, tp, container), protect)
    kept = [
        {g: best(block[g], width[g]) for g in GROUPS}
        for block, width in zip(scores.blocks, chosen, strict=True)
    ]
    costs = Costs.of(checkpoint)
    params = costs.size(chosen, checkpoint.units, "params")
    return Plan(
        kept,
        {
            "asked": asdict(target),
            "keep_reached": params / costs.total["params"],
            "keep_blocks_reached": 1 - (costs.total["params"] - params) / costs.prunable,
            "parameters": params,
            "bytes": costs.size(chosen, checkpoint.units, "bytes"),
            "allocate": "uniform",
            "protect": protect,
            "scores": scores.about,
        },
    )
