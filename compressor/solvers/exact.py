"""Exact allocation: of all widths that meet the budget, those whose blocks' errors add up to least.

With equal widths in all blocks there is one choice: how many KV groups stay, the FFN filling the rest
of the budget. With widths of its own for every block it is a knapsack, solved by dynamic programming
over the sizes that can be reached: a state is dropped only if another is no larger and no worse, so
the result is the optimum. Ours; errors: `planning/landscape.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import torch

from compressor.errors import InputError
from compressor.model.groups import GROUPS

Widths = dict[str, int]  # units of each group, of one block


def knapsack(
    costs: Sequence[torch.Tensor], errors: Sequence[torch.Tensor], limit: float
) -> list[int]:
    """One choice of each list so that the costs, int64, add up to at most limit and the errors to least.

    Of equal errors the smaller size is taken. InputError where no selection fits.
    """
    least_after = [0]  # what the lists that follow cost at least
    for cost in reversed(costs):
        least_after.append(least_after[-1] + int(cost.min()))
    if least_after[-1] > limit:
        raise InputError(
            f"Nothing that small fits: {least_after[-1]:,} is the least of {limit:,g}."
        )
    size = torch.zeros(1, dtype=torch.int64)
    error = torch.zeros(1, dtype=torch.float64)
    steps = []
    for cost, added, rest in zip(costs, errors, least_after[-2::-1], strict=True):
        sizes = (size[:, None] + cost).flatten()
        sums = (error[:, None] + added.double()).flatten()
        fitting = (sizes <= limit - rest).nonzero().flatten()
        # By size, at one size by error: what is no better than anything smaller goes.
        fitting = fitting[sums[fitting].argsort(stable=True)]
        fitting = fitting[sizes[fitting].argsort(stable=True)]
        lowest = sums[fitting].cummin(0).values
        better = torch.cat((lowest.new_ones(1).bool(), lowest[1:] < lowest[:-1]))
        taken = fitting[better]
        steps.append((taken // len(cost), taken % len(cost)))
        size, error = sizes[taken], sums[taken]
    at, chosen = len(size) - 1, []
    for origin, choice in reversed(steps):
        chosen.append(int(choice[at]))
        at = int(origin[at])
    return chosen[::-1]


def take_nearer(
    widths: list[Widths], steps: Sequence[tuple[float, int, Widths]], room: float, rest: float
) -> None:
    """Take one step more than there is room for, where that comes nearer to the room than none does.

    steps: what could be next, (cost, block, new widths), the best first; the cheapest is looked at.
    rest: what everything that was left out costs, which is never taken: the model would be whole.
    """
    if steps:
        cost, b, new = min(steps, key=lambda step: step[0])
        if cost - room < room and cost < rest:
            widths[b] = new


def grown(
    widths: Sequence[Widths],
    errors: Sequence[torch.Tensor],
    lattices: Sequence[Mapping[str, Sequence[int]]],
    prices: Mapping[str, Sequence[int]],
    room: float,
    near: bool = False,
) -> list[Widths]:
    """Take steps up the lattice while one fits, first those that lower the errors most.

    An optimum leaves room only where no step lowers its error; a unit more does no harm, and sizes
    come as near to the target as they can. near: at last a step above it, if that is nearer.
    """
    widths = [dict(width) for width in widths]

    def error(b: int, width: Mapping[str, int]) -> float:
        return errors[b][tuple(lattices[b][g].index(width[g]) for g in GROUPS)].item()

    while True:
        steps = []
        for b, (width, lattice) in enumerate(zip(widths, lattices, strict=True)):
            for group in GROUPS:
                wider = lattice[group].index(width[group]) + 1
                if wider == len(lattice[group]):
                    continue
                new = width | {group: lattice[group][wider]}
                cost = prices[group][new[group]] - prices[group][width[group]]
                steps.append((error(b, new) - error(b, width), b, cost, new))
        fitting = [step for step in steps if step[2] <= room]
        if not fitting:
            break
        _, b, cost, widths[b] = min(fitting, key=lambda step: step[:3])
        room -= cost
    if near:
        beyond = sorted(steps, key=lambda step: step[:3])
        rest = sum(
            prices[g][lattice[g][-1]] - prices[g][width[g]]
            for width, lattice in zip(widths, lattices, strict=True)
            for g in GROUPS
        )
        take_nearer(widths, [(cost, b, new) for _, b, cost, new in beyond], room, rest)
    return widths


def own_widths(
    errors: Sequence[torch.Tensor],
    lattices: Sequence[Mapping[str, Sequence[int]]],
    prices: Mapping[str, Sequence[int]],
    room: float,
    allowed: Sequence[Sequence[tuple[int, ...]]] | None = None,
    near: bool = False,
) -> list[Widths]:
    """Widths of every block, of the least sum of errors, whose units cost at most `room`; or, if they
    come nearer to it so (near), a step of one block more.

    errors: [numbers of groups, FFN widths] of each block, whose widths are those of `lattices`;
    prices: of 0, 1, .. units of each group. allowed: of each block, the places in `errors` to choose
    from; all by default.
    """
    places: Sequence[Iterable[tuple[int, ...]]] = allowed or [
        product(*(range(len(lattice[g])) for g in GROUPS)) for lattice in lattices
    ]
    choices, sizes, values = [], [], []
    for error, lattice, some in zip(errors, lattices, places, strict=True):
        some = list(some)
        choices.append(
            [{g: lattice[g][at] for g, at in zip(GROUPS, place, strict=True)} for place in some]
        )
        sizes.append(torch.tensor([sum(prices[g][w[g]] for g in GROUPS) for w in choices[-1]]))
        values.append(torch.stack([error[place] for place in some]))
    chosen = knapsack(sizes, values, room)
    room -= sum(int(size[c]) for size, c in zip(sizes, chosen, strict=True))
    widths = [options[c] for options, c in zip(choices, chosen, strict=True)]
    return grown(widths, errors, lattices, prices, room, near)


def best_split(
    splits: Sequence[Widths], errors: Sequence[torch.Tensor], lattice: Mapping[str, Sequence[int]]
) -> Widths:
    """Of widths that all blocks may have, those of the least sum of errors."""
    total = torch.stack(list(errors)).sum(0)
    return min(splits, key=lambda w: total[tuple(lattice[g].index(w[g]) for g in GROUPS)].item())
