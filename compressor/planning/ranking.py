"""Global allocation: all units of the model ranked together, and every block its own widths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from compressor.config.target import Target
from compressor.model.source import Source
from compressor.planning.costs import aim_of
from compressor.planning.lattice import Lattice, up_to
from compressor.planning.uniform import feasible_splits, smallest, taken_split
from compressor.scoring.scores import Scores
from compressor.solvers.exact import Widths, take_nearer

TINY = torch.finfo(torch.float64).tiny


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
    widths: Sequence[Widths],
    steps: Sequence[Step],
    prices: Mapping[str, Sequence[int]],
    room: float,
    near: bool = False,
) -> list[Widths]:
    """Take the steps in their order as far as there is room, in the measure of `prices` (of n units).

    A step that no longer fits ends its group in its block, and the others go on: at the end no step
    that could be next fits. With more room the size is never smaller. near: one of these steps is
    taken all the same, the smallest, where that comes nearer to the room than without it.
    """

    def cost(step: Step) -> int:
        price = prices[step.group]
        return price[step.width] - price[step.width - step.units]

    widths = [dict(width) for width in widths]
    left: dict[tuple[int, str], list[Step]] = {}  # not taken, of every group of every block
    for step in steps:
        place = (step.block, step.group)
        if place in left or cost(step) > room:
            left.setdefault(place, []).append(step)
        else:
            widths[step.block][step.group] = step.width
            room -= cost(step)
    if near:
        following = [waiting[0] for waiting in left.values()]
        beyond = [(cost(s), s.block, widths[s.block] | {s.group: s.width}) for s in following]
        rest = sum(cost(step) for waiting in left.values() for step in waiting)
        take_nearer(widths, beyond, room, rest)
    return widths


def solve_globally(
    scores: Scores,
    target: Target,
    checkpoint: Source,
    lattice: Lattice,
    protect: Sequence[int] = (),
    alike: Sequence[str] = (),
) -> list[Widths]:
    """Widths by one ranking of all units of the blocks that are not protected, nearest to the target.

    It begins with the least widths everywhere (one KV group, one lattice step of FFN channels). alike:
    if it is the attention alone, all blocks have as many KV groups as equal widths would have.
    """
    if {*alike} == {"attention"}:
        costs, splits = feasible_splits(target, checkpoint, lattice, protect)
        groups = taken_split(target, costs, lattice, splits, protect)["attention"]
        lattice = replace(lattice, attention=[groups])
    costs, least = smallest(target, checkpoint, lattice, protect)
    steps = ranked_steps(scores.blocks, {"attention": lattice.attention, "ffn": lattice.ffn})
    free = [step for step in steps if step.block not in protect]
    room = aim_of(target, costs)[0] - costs.size(least, target.measure)
    return grow(least, free, costs.prices[target.measure], room, near=not target.hard)
