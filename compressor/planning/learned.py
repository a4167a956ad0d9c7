"""Widths next to what blocks learned: points of their paths through the budgets."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch

from compressor.model.groups import GROUPS

POINTS = 50  # of a path that are looked at, between two targets
BISECTIONS = 60


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
    path, found = whole_path(learned, lattice), set()
    for step in range((len(path) - 1) * POINTS + 1):
        point = widths_at(path, step / POINTS).tolist()
        found |= {
            *product(*(neighbours(w, lattice[g]) for w, g in zip(point, GROUPS, strict=True)))
        }
    return sorted(tuple(lattice[g].index(w) for w, g in zip(c, GROUPS, strict=True)) for c in found)


def neighbours(width: float, widths: Sequence[int]) -> list[int]:
    """The widest that is not above, and the narrowest that is not below."""
    below = [w for w in widths if w <= width + 1e-9]
    above = [w for w in widths if w >= width - 1e-9]
    return sorted({*below[-1:], *above[:1]})
