"""Allocation: how many units of each group stay in each block, on the lattice of widths.

    uniform   the same widths in every block
    global    all units of the model ranked together; every block its own widths

Which units stay is the same in both: the best-scored of each group of each block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.lattice import Lattice, lattice
from compressor.plan import Costs, Plan, Target, limit_of, reached
from compressor.scores import GROUPS, Scores, best

Widths = dict[str, int]  # units of each group, of one block

TINY = torch.finfo(torch.float64).tiny


def smallest(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The least widths of every block; `InputError` where even they are above the target."""
    costs, units = Costs.of(checkpoint), checkpoint.units
    least = {"attention": lattice.attention[0], "ffn": lattice.ffn[0]}
    widths = [dict(units) if b in protect else dict(least) for b in range(checkpoint.blocks)]
    size = costs.size(widths, units, target.measure)
    if size > limit_of(target, costs)[0]:
        raise InputError(
            f"The target {target.kind} {target.value:,g} cannot be reached: the smallest possible is "
            f"{reached(target, costs, size):,.6g} ({size:,} {target.measure})."
        )
    return widths


def solve(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """Uniform widths: the largest size on the lattice that is not above the target.

    The share of KV groups that stay is the one nearest above the blocks' share (whole groups are
    few, and one too many costs more than channels do); FFN channels fill the rest exactly.
    """
    smallest(target, checkpoint, lattice, protect)
    costs, units = Costs.of(checkpoint), checkpoint.units
    limit, whole = limit_of(target, costs)
    cut_blocks = [b for b in range(checkpoint.blocks) if b not in protect]

    def widths(groups: int, channels: int) -> list[Widths]:
        cut = {"attention": groups, "ffn": channels}
        return [dict(units) if b in protect else cut for b in range(checkpoint.blocks)]

    def size(groups: int, channels: int) -> int:
        return costs.size(widths(groups, channels), units, target.measure)

    movable = len(cut_blocks) * sum(units[g] * costs.unit[g][target.measure] for g in GROUPS)
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


@dataclass(frozen=True)
class Step:
    """One step up the lattice: a group of a block grows by `units`, to `width`."""

    worth: float  # mean normalised score of the units added
    block: int
    group: str
    width: int
    units: int


def normalised(blocks: Sequence[Mapping[str, torch.Tensor]], group: str) -> list[torch.Tensor]:
    """A group's scores in every block, [units] float64, over their mean in the whole model.

    One constant for the FFN channels and one for the KV groups. All units of a group cost the same,
    so this is the score per parameter over the group's mean score per parameter: an average
    parameter counts the same in both, whatever their scores are measured in and whatever a unit
    costs, and what scores know between blocks is kept. Where scores are not comparable between
    blocks, as norms of activations are not, neither are these.

    That sizes are compared by score per parameter is usual (LLM-Pruner, arXiv 2305.11627); this
    normalisation is ours.
    """
    mean = torch.cat([block[group] for block in blocks]).double().abs().mean()
    return [block[group].double() / mean.clamp_min(TINY) for block in blocks]


def ranked_steps(
    blocks: Sequence[Mapping[str, torch.Tensor]], lattice: Mapping[str, Sequence[int]]
) -> list[Step]:
    """All steps of all blocks beyond the least widths, by `normalised` score, the best first.

    A step is worth the mean of its units, and at most what the step before it is. Ties go to
    attention, then to the lower block.
    """
    steps = []
    for group, widths in lattice.items():
        for b, values in enumerate(normalised(blocks, group)):
            descending, worth = values.sort(descending=True).values, math.inf
            for narrow, wide in pairwise(widths):
                worth = min(worth, descending[narrow:wide].mean().item())
                steps.append(Step(worth, b, group, wide, wide - narrow))
    return sorted(steps, key=lambda step: -step.worth)


def grow(
    widths: Sequence[Widths], steps: Sequence[Step], costs: Mapping[str, int], room: float
) -> list[Widths]:
    """Take the steps in their order as far as there is room, in the measure of `costs` (of a unit).

    A step that no longer fits ends its group in its block, and the others go on: at the end no step
    that could be next fits. With more room the size is never smaller.
    """
    widths = [dict(width) for width in widths]
    full = set()
    for step in steps:
        place, cost = (step.block, step.group), step.units * costs[step.group]
        if place in full:
            continue
        if cost > room:
            full.add(place)
            continue
        widths[step.block][step.group] = step.width
        room -= cost
    return widths


def solve_globally(
    scores: Scores,
    target: Target,
    checkpoint: Checkpoint,
    lattice: Lattice,
    protect: Sequence[int] = (),
) -> list[Widths]:
    """Widths by one ranking of all units of the blocks that are not protected, not above the target.

    It begins with the least widths everywhere (one KV group, one lattice step of FFN channels).
    """
    costs = Costs.of(checkpoint)
    least = smallest(target, checkpoint, lattice, protect)
    steps = ranked_steps(scores.blocks, {"attention": lattice.attention, "ffn": lattice.ffn})
    free = [step for step in steps if step.block not in protect]
    unit = {group: costs.unit[group][target.measure] for group in GROUPS}
    room = limit_of(target, costs)[0] - costs.size(least, checkpoint.units, target.measure)
    return grow(least, free, unit, room)


ALLOCATIONS = {
    "uniform": lambda scores, *constraints: solve(*constraints),
    "global": solve_globally,
}


def check_allocation(how: str) -> None:
    if how not in ALLOCATIONS:
        raise InputError(f"--allocate is {' or '.join(ALLOCATIONS)}, not {how!r}.")


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
    how: str = "uniform",
) -> Plan:
    """The best-scored units of every block, as many as the allocation `how` gives each."""
    check_allocation(how)
    blocks = checkpoint.blocks
    protect = protected(protect, checkpoint)
    if len(scores.blocks) != blocks or any(
        len(block[g]) != checkpoint.units[g] for block in scores.blocks for g in GROUPS
    ):
        raise InputError(f"The scores do not fit {checkpoint.path}: other numbers of units.")
    widths = lattice(checkpoint, align, tp, container)
    chosen = ALLOCATIONS[how](scores, target, checkpoint, widths, protect)
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
            "allocate": how,
            "protect": protect,
            "scores": scores.about,
        },
    )
