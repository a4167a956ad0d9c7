"""Uniform allocation: the same widths in every block that is not protected."""

from collections.abc import Sequence

from compressor.allocation.exact import Widths
from compressor.checkpoint import Checkpoint
from compressor.containers import why_heads_stay
from compressor.errors import InputError
from compressor.lattice import Lattice
from compressor.plan import Costs, Target, limit_of, reached
from compressor.scores import GROUPS


def smallest(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The least widths of every block; `InputError` where even they are above the target."""
    costs = Costs.of(checkpoint, target.budget)
    widths = [
        dict(units)
        if b in protect
        else {g: steps[0] for g, steps in lattice.of_block(units).items()}
        for b, units in enumerate(checkpoint.block_units)
    ]
    size = costs.size(widths, target.measure)
    if size > limit_of(target, costs)[0]:
        stay = why_heads_stay(checkpoint) if len(lattice.attention) == 1 else ""
        # Of a table the share says all; parts of its whole are nobody's unit.
        counted = "" if target.measure == "parts" else f" ({size:,} {target.measure})"
        raise InputError(
            f"The target {target.kind} {target.value:,g} cannot be reached: the smallest possible is "
            f"{reached(target, costs, size):,.6g}{counted}. {stay}".rstrip()
        )
    return widths


def constant_splits(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The widths that all blocks (that are not protected) can have: for every number of KV groups
    that leaves room for FFN channels the most that fit, by ascending groups.
    """
    smallest(target, checkpoint, lattice, protect)
    costs = Costs.of(checkpoint, target.budget)
    limit = limit_of(target, costs)[0]
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


def check_equal(
    target: Target, checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()
) -> None:
    """Refuse a target that equal widths stay far below, since blocks differ: the narrowest sets them."""
    free = [units for b, units in enumerate(checkpoint.block_units) if b not in protect]
    if all(units == free[0] for units in free):
        return
    costs = Costs.of(checkpoint, target.budget)
    splits = constant_splits(target, checkpoint, lattice, protect)
    sizes = [costs.size(everywhere(s, checkpoint, protect), target.measure) for s in splits]
    most = {g: max(n for n in getattr(lattice, g) if n <= min(u[g] for u in free)) for g in GROUPS}
    if most in splits and max(sizes) < limit_of(target, costs)[0]:
        raise InputError(
            f"The target {target.kind} {target.value:,g} is more than equal widths leave: the blocks of "
            f"{checkpoint.path} differ, and with those of the narrowest everywhere it is "
            f"{reached(target, costs, max(sizes)):,.6g}. Ask for no more than that, or add "
            "--layout per-layer --allocate global."
        )


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
    costs = Costs.of(checkpoint, target.budget)
    limit, whole = limit_of(target, costs)
    free = [units for b, units in enumerate(checkpoint.block_units) if b not in protect]
    prices = costs.prices[target.measure]
    movable = sum(prices[g][units[g]] for units in free for g in GROUPS)
    share = max(0.0, 1 - (whole - limit) / movable)
    wanted = share * sum(units["attention"] for units in free) / len(free)
    wide = [g for g in lattice.attention if g >= wanted - 1e-9]
    enough = [*wide, lattice.attention[-1]][0]
    # Fewer groups only where the channels alone cannot make room for this many.
    return everywhere([s for s in splits if s["attention"] <= enough][-1], checkpoint, protect)
