"""Allocation: how many units of each group stay in each block, on the lattice of widths.

    uniform   the same widths in every block, of attention and FFN about the same share
    global    all units of the model ranked together; every block its own widths
    exact     the widths whose measured errors add up to least (`exact.py`, `landscape.py`)
    besa      the same of widths next to those that blocks learned (`besa.py`)

Which units stay is the same in all: the best-scored of each group of each block.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from compressor.allocation.besa import learned_groups, near_path
from compressor.allocation.exact import Widths, best_split, own_widths
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.lattice import Lattice, lattice, up_to
from compressor.plan import Costs, Plan, Target, limit_of, reached
from compressor.scores import GROUPS, Scores, best

TINY = torch.finfo(torch.float64).tiny


def smallest(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The least widths of every block; `InputError` where even they are above the target."""
    costs = Costs.of(checkpoint)
    widths = [
        dict(units)
        if b in protect
        else {g: steps[0] for g, steps in lattice.of_block(units).items()}
        for b, units in enumerate(checkpoint.block_units)
    ]
    size = costs.size(widths, target.measure)
    if size > limit_of(target, costs)[0]:
        raise InputError(
            f"The target {target.kind} {target.value:,g} cannot be reached: the smallest possible is "
            f"{reached(target, costs, size):,.6g} ({size:,} {target.measure})."
        )
    return widths


def constant_splits(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The widths that all blocks (that are not protected) can have: for every number of KV groups
    that leaves room for FFN channels the most that fit, by ascending groups.
    """
    smallest(target, checkpoint, lattice, protect)
    costs, limit = Costs.of(checkpoint), limit_of(target, Costs.of(checkpoint))[0]
    free = [units for b, units in enumerate(checkpoint.block_units) if b not in protect]
    most = {group: min(units[group] for units in free) for group in GROUPS}

    def size(split: Widths) -> int:
        widths = everywhere(split, checkpoint, protect)
        return costs.size(widths, target.measure)

    found = []
    for groups in (n for n in lattice.attention if n <= most["attention"]):
        channels = [n for n in lattice.ffn if n <= most["ffn"]]
        splits = ({"attention": groups, "ffn": n} for n in channels)
        fitting = [split for split in splits if size(split) <= limit]
        found += fitting[-1:]
    if not found:
        raise InputError(
            f"Equal widths of all blocks begin with {lattice.attention[0]} KV groups and "
            f"{lattice.ffn[0]} FFN channels, and a block has {most['attention']} and {most['ffn']}; "
            "give a smaller --align, or --layout per-layer --allocate exact."
        )
    return found


def everywhere(split: Widths, checkpoint: Checkpoint, protect: Sequence[int]) -> list[Widths]:
    """The same widths in all blocks that are not protected."""
    blocks = enumerate(checkpoint.block_units)
    return [dict(units if b in protect else split) for b, units in blocks]


def solve(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """Uniform widths: the largest size on the lattice that is not above the target.

    The share of KV groups that stay is the one nearest above the blocks' share (whole groups are
    few, and one too many costs more than channels do); FFN channels fill the rest exactly.
    """
    splits = constant_splits(target, checkpoint, lattice, protect)
    costs = Costs.of(checkpoint)
    limit, whole = limit_of(target, costs)
    free = [units for b, units in enumerate(checkpoint.block_units) if b not in protect]
    movable = sum(units[g] * costs.unit[g][target.measure] for units in free for g in GROUPS)
    share = max(0.0, 1 - (whole - limit) / movable)
    wanted = share * sum(units["attention"] for units in free) / len(free)
    wide = [g for g in lattice.attention if g >= wanted - 1e-9]
    enough = [*wide, lattice.attention[-1]][0]
    # Fewer groups only where the channels alone cannot make room for this many.
    return everywhere([s for s in splits if s["attention"] <= enough][-1], checkpoint, protect)


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
            for narrow, wide in pairwise(up_to(widths, len(values))):
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
    room = limit_of(target, costs)[0] - costs.size(least, target.measure)
    return grow(least, free, unit, room)


def solve_measured(
    scores: Scores,
    target: Target,
    checkpoint: Checkpoint,
    lattice: Lattice,
    protect: Sequence[int] = (),
    alike: bool = True,
    learned: bool = False,
) -> list[Widths]:
    """Widths whose blocks' errors add up to least, from the landscape that comes with the scores.

    alike: all blocks have the same widths, except those that are protected. learned: of the cuts next
    to what blocks learned (`besa.py`) alone.
    """
    landscape = scores.landscape
    if landscape is None or (learned and not landscape.learned):
        how = "besa" if learned else "exact"
        raise InputError(
            f"--allocate {how} needs what is measured of cuts, which these scores come without; "
            f"score again with --allocate {how}."
        )
    errors = landscape.on(lattice)
    free = [b for b in range(checkpoint.blocks) if b not in protect]
    errors = [errors[b] for b in free]
    costs = Costs.of(checkpoint)
    unit = {group: costs.unit[group][target.measure] for group in GROUPS}
    smallest(target, checkpoint, lattice, protect)
    nothing = everywhere(dict.fromkeys(GROUPS, 0), checkpoint, protect)
    room = limit_of(target, costs)[0] - costs.size(nothing, target.measure)
    paths = [landscape.learned[b] for b in free] if learned else []
    if alike:
        splits = constant_splits(target, checkpoint, lattice, protect)
        steps = {"attention": lattice.attention, "ffn": lattice.ffn}
        if learned and free:
            near = learned_groups(paths, steps, unit, room / len(free))
            splits = [s for s in splits if s["attention"] in near] or splits
        return everywhere(best_split(splits, errors, steps), checkpoint, protect)
    widths = [dict(units) for units in checkpoint.block_units]
    steps = [lattice.of_block(widths[b]) for b in free]
    # Widths beyond the block's own were measured as the whole block.
    errors = [
        e[: len(own["attention"]), : len(own["ffn"])] for e, own in zip(errors, steps, strict=True)
    ]
    allowed = None
    if learned:
        allowed = [near_path(path, own) for path, own in zip(paths, steps, strict=True)]
    found = own_widths(errors, steps, unit, room, allowed)
    for b, width in zip(free, found, strict=True):
        widths[b] = width
    return widths


@dataclass(frozen=True)
class Allocation:
    """A way to find widths: solve(scores, target, checkpoint, lattice, protect, alike).

    alike, unlike: whether it finds widths that are equal in all blocks, and that are not.
    measured: whether it compares measured errors of cuts, and is judged by held-back text.
    """

    solve: Callable[..., list[Widths]]
    alike: bool = True
    unlike: bool = True
    measured: bool = False


ALLOCATIONS = {
    "uniform": Allocation(lambda scores, *given: solve(*given[:-1]), unlike=False),
    "global": Allocation(lambda *given: solve_globally(*given[:-1]), alike=False),
    "exact": Allocation(solve_measured, measured=True),
    "besa": Allocation(lambda *given: solve_measured(*given, learned=True), measured=True),
}


def check_allocation(how: str) -> None:
    if how not in ALLOCATIONS:
        *names, last = ALLOCATIONS
        raise InputError(f"--allocate is {', '.join(names)} or {last}, not {how!r}.")


def protected(blocks: Sequence[int], checkpoint: Checkpoint) -> list[int]:
    """Block numbers, negative ones counted from the end, as sorted non-negative ones."""
    count = checkpoint.blocks
    outside = [b for b in blocks if not -count <= b < count]
    if outside:
        raise InputError(f"--protect names the block {outside[0]}; the model has {count} blocks.")
    return sorted({b % count for b in blocks})


def check_scores(scores: Scores, checkpoint: Checkpoint) -> None:
    if len(scores.blocks) != checkpoint.blocks or any(
        len(block[g]) != units[g]
        for block, units in zip(scores.blocks, checkpoint.block_units, strict=True)
        for g in GROUPS
    ):
        raise InputError(f"The scores do not fit {checkpoint.path}: other numbers of units.")


def allocate(
    scores: Scores,
    checkpoint: Checkpoint,
    target: Target,
    align: int | None = None,
    tp: int = 1,
    protect: Sequence[int] = (),
    container: str = "auto",
    how: str = "uniform",
    alike: bool = True,
    columns: int = 1,
) -> Plan:
    """The best-scored units of every block, as many as the allocation `how` gives each.

    alike: as many in every block; `global` gives every block its own number all the same.
    """
    check_allocation(how)
    check_scores(scores, checkpoint)
    protect = protected(protect, checkpoint)
    widths = lattice(checkpoint, align, tp, container, columns)
    chosen = ALLOCATIONS[how].solve(scores, target, checkpoint, widths, protect, alike)
    return plan_of(scores, checkpoint, target, chosen, how, protect)


def plan_of(
    scores: Scores,
    checkpoint: Checkpoint,
    target: Target,
    widths: Sequence[Widths],
    how: str,
    protect: Sequence[int],
) -> Plan:
    """The best-scored units of every block, as many as `widths` says."""
    kept = [
        {g: best(block[g], width[g]) for g in GROUPS}
        for block, width in zip(scores.blocks, widths, strict=True)
    ]
    costs = Costs.of(checkpoint)
    params = costs.size(widths, "params")
    return Plan(
        kept,
        {
            "asked": asdict(target),
            "keep_reached": params / costs.total["params"],
            "keep_blocks_reached": 1 - (costs.total["params"] - params) / costs.prunable,
            "parameters": params,
            "bytes": costs.size(widths, "bytes"),
            "allocate": how,
            "protect": list(protect),
            "scores": scores.about,
        },
    )
