"""Allocation by what cuts were measured to do: `exact` by the errors of blocks, `besa` next to what they
learned, `measured` by the loss of the model.
"""

from collections.abc import Sequence

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.groups import GROUPS
from compressor.model.source import Source
from compressor.planning.costs import Costs, aim_of
from compressor.planning.landscape import Landscape, scaled
from compressor.planning.lattice import Lattice
from compressor.planning.learned import learned_groups, near_path
from compressor.planning.uniform import constant_splits, everywhere, smallest
from compressor.scoring.scores import Scores
from compressor.solvers.exact import Widths, best_split, own_widths


def solve_measured(
    scores: Scores,
    target: Target,
    checkpoint: Source,
    lattice: Lattice,
    protect: Sequence[int] = (),
    alike: bool = True,
    learned: bool = False,
    in_nats: bool = False,
) -> list[Widths]:
    """Widths whose blocks' errors add up to least, from the landscape that comes with the scores.

    alike: all blocks have the same widths, except those that are protected. learned: of the cuts next
    to what blocks learned (`learned.py`) alone. in_nats: by what the errors are worth (`scaled`).
    """
    landscape = Landscape.of(scores)
    missing = landscape is None or (learned and not landscape.learned)
    if missing or (in_nats and not landscape.losses):
        how = "besa" if learned else "measured" if in_nats else "exact"
        raise InputError(
            f"--allocate {how} needs what is measured of cuts, which these scores come without; "
            f"score again with --allocate {how}."
        )
    errors = scaled(landscape, lattice) if in_nats else landscape.on(lattice)
    free = [b for b in range(checkpoint.blocks) if b not in protect]
    errors = [errors[b] for b in free]
    costs = Costs.of(checkpoint, target.budget)
    prices = costs.prices[target.measure]
    least = costs.size(smallest(target, checkpoint, lattice, protect), target.measure)
    nothing = everywhere(dict.fromkeys(GROUPS, 0), checkpoint, protect)
    room = max(aim_of(target, costs)[0], least) - costs.size(nothing, target.measure)
    paths = [landscape.learned[b] for b in free] if learned else []
    if alike:
        splits = constant_splits(target, checkpoint, lattice, protect)
        steps = {"attention": lattice.attention, "ffn": lattice.ffn}
        if learned and free:
            near = learned_groups(paths, steps, prices, room / len(free))
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
    found = own_widths(errors, steps, prices, room, allowed, near=not target.hard)
    for b, width in zip(free, found, strict=True):
        widths[b] = width
    return widths
