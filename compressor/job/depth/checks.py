"""What of a cut by depth can be refused once the source is known, and what its sizes will be."""

from compressor.config.amounts import AUTO
from compressor.config.plan import PlanConfig
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.fewer_blocks import without
from compressor.model.source import Source
from compressor.planning.allocation import protected
from compressor.planning.costs import CLOSE, Costs, miss_of, reached


def check_room(target: Target, checkpoint: Source) -> None:
    """Refuse to drop more blocks than a target leaves to be cut."""
    costs = Costs.of(checkpoint, target.budget)
    left = costs.size(checkpoint.block_units, target.measure)
    if checkpoint.dropped and miss_of(target, costs, left) < -CLOSE:
        many = len(checkpoint.dropped)
        raise InputError(
            f"Without {many} block{'s' * (many > 1)}, {target.in_words(reached(target, costs, left))} "
            f"are left, less than {target.flag}; drop fewer, or leave the target out."
        )


def outlined(plan: PlanConfig, checkpoint: Source) -> Source:
    """The source without as many blocks as are to go: which, is not known yet, so it is the last ones.

    InputError where there are not so many that can go.
    """
    if plan.drop_blocks is None:
        return checkpoint
    free = free_blocks(plan, checkpoint)
    count = 0 if plan.drop_blocks == AUTO else int(plan.drop_blocks)
    if count > len(free):
        kept = ", ".join(map(str, [b for b in range(checkpoint.blocks) if b not in free]))
        raise InputError(
            f"--drop-blocks {count}: {checkpoint.label} has {checkpoint.blocks} blocks, of which "
            f"{len(free)} can go (not {kept}); drop fewer."
        )
    return without(checkpoint, free[len(free) - count :])


def free_blocks(plan: PlanConfig, checkpoint: Source) -> list[int]:
    """The blocks that can be dropped: all but the first and those that are protected."""
    kept = {0, *protected(plan.protect, checkpoint)}
    return [block for block in range(checkpoint.blocks) if block not in kept]
