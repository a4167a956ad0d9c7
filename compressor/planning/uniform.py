"""Uniform allocation: the same widths in every block that is not protected."""

from bisect import bisect_right
from collections.abc import Sequence

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.groups import GROUPS, are_alike, counts
from compressor.model.source import Source
from compressor.planning.costs import CLOSE, Costs, aim_of, meets, miss_of, reached
from compressor.planning.lattice import Lattice
from compressor.planning.reach import least_widths, refusal
from compressor.solvers.exact import Widths


def smallest(
    target: Target, checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()
) -> tuple[Costs, list[Widths]]:
    """Costs, and the least widths of every block; `InputError` where even they are above the target."""
    costs = Costs.of(checkpoint, target.budget)
    widths = least_widths(costs, lattice, protect)
    if not meets(target, costs, costs.size(widths, target.measure)):
        raise InputError(refusal(target, checkpoint, costs, lattice, protect))
    return costs, widths


def free_blocks(costs: Costs, protect: Sequence[int]) -> list[Widths]:
    """The units of the blocks that are not protected."""
    return [units for b, units in enumerate(costs.block_units) if b not in protect]


def narrowest(free: Sequence[Widths]) -> Widths:
    """The fewest units of each group that a block has which has any."""
    return {group: min(counts(free, group), default=0) for group in GROUPS}


def nearest_splits(
    target: Target, costs: Costs, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """Equal widths of all blocks that are not protected, one a number of KV groups, ascending.

    To every number that leaves room for FFN channels (half a point of the target apart), the width
    that comes nearest to the target, of a bound the widest within it.
    """
    free = free_blocks(costs, protect)
    if not free:
        return []
    prices = costs.prices[target.measure]
    outside = costs.size(everywhere(dict.fromkeys(GROUPS, 0), costs, protect), target.measure)
    most = narrowest(free)
    blocks = {group: sum(units[group] > 0 for units in free) for group in GROUPS}
    channels = [n for n in lattice.ffn if n <= most["ffn"]]
    aim, whole = aim_of(target, costs)
    splits = []
    for groups in (n for n in lattice.attention if n <= most["attention"]):

        def size(ffn: int, groups: int = groups) -> int:
            attention = blocks["attention"] * prices["attention"][groups]
            return outside + attention + blocks["ffn"] * prices["ffn"][ffn]

        if not channels or not meets(target, costs, size(channels[0])):
            continue
        above = bisect_right(channels, aim, key=size)
        beside = channels[max(0, above - 1) : above + 1]
        fitting = [n for n in beside if size(n) < whole and (size(n) <= aim or not target.hard)]
        ffn = min(fitting, key=lambda n: (abs(size(n) - aim), n))
        splits.append({"attention": groups, "ffn": ffn})
    return splits


def taken_split(
    target: Target,
    costs: Costs,
    lattice: Lattice,
    splits: Sequence[Widths],
    protect: Sequence[int] = (),
) -> Widths:
    """Of `nearest_splits` the one that is taken where nothing was measured.

    The share of KV groups that stay is the one nearest above the blocks' share (whole groups are
    few, and one too many costs more than channels do); FFN channels fill the rest. Fewer groups stay
    only where the channels alone cannot make room for this many, or would come below half that share.
    """
    aim, whole = aim_of(target, costs)
    free = free_blocks(costs, protect)
    prices = costs.prices[target.measure]
    movable = sum(prices[g][units[g]] for units in free for g in GROUPS)
    # Of a source that has lost blocks it is less than the whole.
    present = min(whole, costs.size(costs.block_units, target.measure))
    share = max(0.0, 1 - (present - aim) / movable)
    having = {g: [units[g] for units in free if units[g]] or [0] for g in GROUPS}
    wanted = {g: share * sum(units) / len(units) for g, units in having.items()}
    wide = [g for g in lattice.attention if g >= wanted["attention"] - 1e-9]
    most = [*wide, lattice.attention[-1]][0]
    fitting = [s for s in splits if s["attention"] <= most] or splits[:1]
    ample = [s for s in fitting if s["ffn"] >= wanted["ffn"] / 2]
    return ample[-1] if ample else fitting[0]


def feasible_splits(
    target: Target, checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()
) -> tuple[Costs, list[Widths]]:
    """`nearest_splits`, and costs; `InputError` where there are none."""
    costs, _ = smallest(target, checkpoint, lattice, protect)
    splits = nearest_splits(target, costs, lattice, protect)
    if not splits:
        most = narrowest(free_blocks(costs, protect))
        raise InputError(
            f"Equal widths of all blocks begin with {lattice.attention[0]} KV groups and "
            f"{lattice.ffn[0]} FFN channels, and a block has {most['attention']} and {most['ffn']}; "
            "give a smaller --align, or --layout per-layer --allocate exact."
        )
    return costs, splits


def constant_splits(
    target: Target, checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """The `nearest_splits` that can fairly be compared: a larger model would win without being better.

    Those within half a point of the target, or, where the one that is taken without measuring comes no
    nearer than that, within half a point of this one.
    """
    costs, splits = feasible_splits(target, checkpoint, lattice, protect)

    def miss(split: Widths) -> float:
        size = costs.size(everywhere(split, costs, protect), target.measure)
        return miss_of(target, costs, size)

    middle = miss(taken_split(target, costs, lattice, splits, protect))
    middle = 0.0 if abs(middle) <= CLOSE else middle
    return [split for split in splits if abs(miss(split) - middle) <= CLOSE]


def check_equal(
    target: Target, checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()
) -> None:
    """Refuse a target that equal widths stay far below, since blocks differ: the narrowest sets them."""
    costs = Costs.of(checkpoint, target.budget)
    free = free_blocks(costs, protect)
    if are_alike(free):
        return
    least = narrowest(free)
    feasible_splits(target, checkpoint, lattice, protect)
    most = {g: max(n for n in getattr(lattice, g) if n <= least[g]) for g in GROUPS}
    size = costs.size(everywhere(most, costs, protect), target.measure)
    if miss_of(target, costs, size) < -CLOSE:
        raise InputError(
            f"The target {target.kind} {target.value:,g} is more than equal widths leave: the blocks of "
            f"{checkpoint.label} differ, and with those of the narrowest everywhere it is "
            f"{reached(target, costs, size):,.6g}. Ask for no more than that, or add "
            "--layout per-layer --allocate global."
        )


def everywhere(split: Widths, model: Source | Costs, protect: Sequence[int]) -> list[Widths]:
    """The same widths in all blocks that are not protected, of the groups that they have."""
    return [
        dict(units) if b in protect else {g: n if units[g] else 0 for g, n in split.items()}
        for b, units in enumerate(model.block_units)
    ]


def solve(
    target: Target, checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()
) -> list[Widths]:
    """Uniform widths: those on the lattice that come nearest to the target, and never above a bound."""
    costs, splits = feasible_splits(target, checkpoint, lattice, protect)
    return everywhere(taken_split(target, costs, lattice, splits, protect), checkpoint, protect)
