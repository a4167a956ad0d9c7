"""Allocation by what cuts were measured to do: `exact` by the errors of blocks, `besa` next to what they
learned, `measured` by the loss of the model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.groups import GROUPS
from compressor.model.source import Source
from compressor.planning.costs import aim_of
from compressor.planning.landscape import Landscape, scaled
from compressor.planning.lattice import Lattice
from compressor.planning.uniform import constant_splits, everywhere, smallest
from compressor.scoring.scores import Scores
from compressor.solvers.exact import Widths, best_split, own_widths

Steps = Mapping[str, Sequence[int]]  # the widths that each group of a block can have

POINTS = 50  # of a path through the budgets that are looked at, between two targets
BISECTIONS = 60


def solve_measured(
    scores: Scores,
    target: Target,
    checkpoint: Source,
    lattice: Lattice,
    protect: Sequence[int] = (),
    alike: Sequence[str] = GROUPS,
    learned: bool = False,
    in_nats: bool = False,
) -> list[Widths]:
    """Widths whose blocks' errors add up to least, from the landscape that comes with the scores.

    alike: the groups of which all blocks have as many units, both, the attention's or none; those that
    are protected stay whole. learned: of the cuts next to what blocks learned (`near_path`) alone.
    in_nats: by what the errors are worth (`scaled`).
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
    costs, narrowest = smallest(target, checkpoint, lattice, protect)
    prices, least = costs.prices[target.measure], costs.size(narrowest, target.measure)
    nothing = everywhere(dict.fromkeys(GROUPS, 0), checkpoint, protect)
    room = max(aim_of(target, costs)[0], least) - costs.size(nothing, target.measure)
    paths = [landscape.learned[b] for b in free] if learned else []
    if {*alike} == {*GROUPS}:
        splits = constant_splits(target, checkpoint, lattice, protect)
        steps = {"attention": lattice.attention, "ffn": lattice.ffn}
        if learned and free and not checkpoint.mixed:
            near = learned_groups(paths, steps, prices, room / len(free))
            splits = [s for s in splits if s["attention"] in near] or splits
        return everywhere(best_split(splits, errors, steps), checkpoint, protect)
    widths = [dict(units) for units in checkpoint.block_units]
    steps = [lattice.of_block(widths[b]) for b in free]
    # Widths beyond the block's own were measured as the whole block.
    errors = [
        e[: len(sizes["attention"]), : len(sizes["ffn"])]
        for e, sizes in zip(errors, steps, strict=True)
    ]
    spaces = [*with_equal_groups(steps, errors)] if alike and free else [(steps, errors)]
    fitting = [each for each in spaces if sum(least_cost(s, prices) for s in each[0]) <= room]
    found: list[tuple[float, list[Widths]]] = []
    for some, of_some in fitting or spaces[:1]:
        allowed = None
        if learned:
            allowed = [near_path(path, sizes) for path, sizes in zip(paths, some, strict=True)]
        chosen = own_widths(of_some, some, prices, room, allowed, near=not target.hard)
        found.append((error_of(chosen, of_some, some), chosen))
    _, best = min(found, key=lambda each: each[0])
    for b, width in zip(free, best, strict=True):
        widths[b] = width
    return widths


def with_equal_groups(
    steps: Sequence[Steps], errors: Sequence[torch.Tensor]
) -> Iterator[tuple[list[Steps], list[torch.Tensor]]]:
    """The widths and errors of blocks that all have one number of KV groups, for each that they can;
    blocks of other attention have none.
    """
    having = [{*sizes["attention"]} for sizes in steps if sizes["attention"] != [0]] or [{0}]
    for count in sorted(set.intersection(*having)):
        own = [0 if sizes["attention"] == [0] else count for sizes in steps]
        rows = [sizes["attention"].index(n) for sizes, n in zip(steps, own, strict=True)]
        yield (
            [{**sizes, "attention": [n]} for sizes, n in zip(steps, own, strict=True)],
            [error[[row]] for error, row in zip(errors, rows, strict=True)],
        )


def least_cost(steps: Steps, prices: Mapping[str, Sequence[int]]) -> int:
    return sum(prices[group][widths[0]] for group, widths in steps.items())


def error_of(
    widths: Sequence[Widths],
    errors: Sequence[torch.Tensor],
    steps: Sequence[Steps],
) -> float:
    """The sum of all blocks' errors with these widths."""
    return sum(
        error[tuple(sizes[g].index(width[g]) for g in GROUPS)].item()
        for width, error, sizes in zip(widths, errors, steps, strict=True)
    )


def widths_at(path: torch.Tensor, place: float) -> torch.Tensor:
    """A point of a path [points, groups], `place` counted in points, between two on the line."""
    low = min(int(place), len(path) - 2)
    return torch.lerp(path[low], path[low + 1], place - low)


def whole_path(learned: torch.Tensor, lattice: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """What was learned, with the whole block before it and the least widths after it."""
    ends = ([float(lattice[g][at]) for g in GROUPS] for at in (-1, 0))
    whole, least = (torch.tensor([end], dtype=learned.dtype) for end in ends)
    return torch.cat((whole, learned.clamp(least, whole), least))


def learned_groups(
    learned: Sequence[torch.Tensor],
    lattice: Mapping[str, Sequence[int]],
    prices: Mapping[str, Sequence[int]],
    room: float,
) -> list[int]:
    """The one or two numbers of KV groups next to what blocks learned on average.

    On the mean of the blocks' paths, where its units cost `room`.
    """
    path = torch.stack([whole_path(block, lattice) for block in learned]).mean(0)

    def cost(widths: torch.Tensor) -> float:
        return sum(price_at(prices[g], w) for g, w in zip(GROUPS, widths.tolist(), strict=True))

    low, high = 0.0, len(path) - 1.0
    for _ in range(BISECTIONS):
        place = (low + high) / 2
        low, high = (place, high) if cost(widths_at(path, place)) > room else (low, place)
    return neighbours(widths_at(path, high)[GROUPS.index("attention")].item(), lattice["attention"])


def price_at(prices: Sequence[int], width: float) -> float:
    """Between two whole numbers of units, on the line."""
    low, high = prices[math.floor(width)], prices[math.ceil(width)]
    return low + (high - low) * (width % 1)


def near_path(learned: torch.Tensor, lattice: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """All cuts of a block, by their places on the lattice, that are next to its path on both axes."""
    path, cuts = whole_path(learned, lattice), set()
    for step in range((len(path) - 1) * POINTS + 1):
        point = widths_at(path, step / POINTS).tolist()
        cuts |= {*product(*(neighbours(w, lattice[g]) for w, g in zip(point, GROUPS, strict=True)))}
    return sorted(tuple(lattice[g].index(w) for w, g in zip(c, GROUPS, strict=True)) for c in cuts)


def neighbours(width: float, widths: Sequence[int]) -> list[int]:
    """The widest that is not above, and the narrowest that is not below."""
    below = [w for w in widths if w <= width + 1e-9]
    above = [w for w in widths if w >= width - 1e-9]
    return sorted({*below[-1:], *above[:1]})
