"""Allocation: how many units of each group stay in each block, on the lattice of widths.

    uniform   the same widths in every block, of attention and FFN about the same share
    global    all units of the model ranked together; every block its own widths
    exact     the widths whose measured errors add up to least (`solvers/exact.py`, `landscape.py`)
    measured  the same of errors in nats: what they are worth to the model's loss (`landscape.py`)
    besa      exact, of widths next to those that blocks learned (`measured.py`)

Which units stay is the same in all: the best-scored of each group of each block.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from compressor.config.choices import ALLOCATIONS, check_allocation
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.groups import GROUPS
from compressor.model.source import Source
from compressor.planning.alignment import Alignment, alignment_of
from compressor.planning.costs import Costs, reached
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Wanted
from compressor.planning.measured import solve_measured
from compressor.planning.plan import Plan, dropped_of
from compressor.planning.ranking import solve_globally
from compressor.planning.told import described
from compressor.planning.uniform import solve
from compressor.scoring.scores import Scores, best
from compressor.solvers.exact import Widths

# solve(scores, target, checkpoint, lattice, protect, alike) of the names in `choices.ALLOCATIONS`
SOLVERS: dict[str, Callable[..., list[Widths]]] = {
    "uniform": lambda scores, *arguments: solve(*arguments[:-1]),
    "global": solve_globally,
    "exact": solve_measured,
    "measured": partial(solve_measured, in_nats=True),
    "besa": partial(solve_measured, learned=True),
}


def protected(blocks: Sequence[int], checkpoint: Source) -> list[int]:
    """Block numbers, negative ones counted from the end, as sorted places of these blocks; of a source
    without some of its blocks the numbers are those of the whole.
    """
    count = checkpoint.whole.blocks
    outside = [b for b in blocks if not -count <= b < count]
    if outside:
        raise InputError(f"--protect names the block {outside[0]}; the model has {count} blocks.")
    wanted = sorted({b % count for b in blocks})
    if gone := [b for b in wanted if b in checkpoint.dropped]:
        raise InputError(
            f"--protect names the block {gone[0]}, which is dropped; name one that stays."
        )
    return [checkpoint.numbers.index(b) for b in wanted]


def check_scores(scores: Scores, checkpoint: Source) -> None:
    if len(scores.blocks) != checkpoint.blocks or any(
        len(block[g]) != units[g]
        for block, units in zip(scores.blocks, checkpoint.block_units, strict=True)
        for g in GROUPS
    ):
        raise InputError(f"The scores do not fit {checkpoint.label}: other numbers of units.")
    for index, block in enumerate(scores.blocks):
        for group, values in block.items():
            if not values.isfinite().all():
                raise InputError(f"The scores of {group} in block {index} are not finite.")
    for name, tensors in (scores.measured.tensors if scores.measured else {}).items():
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise InputError(f"What was measured of cuts ({name}) is not finite; score again.")


def alignment(
    target: Target,
    checkpoint: Source,
    wanted: Wanted,
    protect: Sequence[int] = (),
    how: str = "uniform",
    scores: Scores | None = None,
) -> Alignment:
    """The lattice that a target gets with the allocation `how`, of what was measured of the scores."""
    landscape = scores and ALLOCATIONS[how].measured and Landscape.of(scores)
    known = landscape.ffn if landscape else None
    return alignment_of(target, checkpoint, wanted, protect, ALLOCATIONS[how].rule, known)


def allocate(
    scores: Scores,
    checkpoint: Source,
    target: Target,
    wanted: Wanted = Wanted(),
    protect: Sequence[int] = (),
    how: str = "uniform",
) -> Plan:
    """The best-scored units of every block, as many as the allocation `how` gives each.

    wanted: what widths there may be, and of which groups all blocks get as many (`alike`); `global`
    gives every block its own number of FFN channels all the same.
    """
    check_allocation(how)
    check_scores(scores, checkpoint)
    protect = protected(protect, checkpoint)
    aligned = alignment(target, checkpoint, wanted, protect, how, scores)
    chosen = SOLVERS[how](scores, target, checkpoint, aligned.lattice, protect, wanted.alike)
    plan = plan_of(scores, checkpoint, target, chosen, how, protect)
    plan.about |= described(aligned)
    return plan


def plan_of(
    scores: Scores,
    checkpoint: Source,
    target: Target,
    widths: Sequence[Widths],
    how: str,
    protect: Sequence[int],
) -> Plan:
    """The best-scored units of every block, as many as `widths` says."""
    kept = [
        {"attention": best(block["attention"], width["attention"])}
        | {"ffn": best(block["ffn"], width["ffn"], checkpoint.ffn_parts)}
        for block, width in zip(scores.blocks, widths, strict=True)
    ]
    costs = Costs.of(checkpoint, target.budget)
    params = costs.size(widths, "params")
    return Plan(
        kept,
        dropped_of(checkpoint)
        | {
            "asked": asdict(target),
            "keep_reached": params / costs.total["params"],
            "keep_blocks_reached": 1 - (costs.total["params"] - params) / costs.prunable,
            "budget_reached": reached(target, costs, costs.size(widths, target.measure)),
            "parameters": params,
            "bytes": costs.size(widths, "bytes"),
            "allocate": how,
            "protect": list(protect),
            "units": checkpoint.block_units,
            "scores": scores.about,
        },
    )
