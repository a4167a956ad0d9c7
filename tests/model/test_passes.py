"""A pass over the blocks whose results are made afterwards, by several ranks in turn."""

from types import SimpleNamespace

import pytest
import torch

from compressor.model.passes import Passing, pass_over
from compressor.model.ranks import Alone

BLOCKS = 5


class OneOf(Alone):
    """One of several ranks, the others of which make what they have to by themselves."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world, self.begun = rank, world, 0

    def gathered(self, mine: dict) -> list[dict]:
        begun, self.begun = self.begun, self.begun + self.world
        members = range(begun, min(self.begun, BLOCKS))
        return [mine if index in mine else {index: made(index)} for index in members]


def made(index: int) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([float(index)])}


def passed(ranks: Alone, called: list[int], told: list[tuple[int, int]]) -> list[dict]:
    def run(batches, visit, pauses):
        for index in range(BLOCKS):
            visit(index, None, lambda: iter(()))
        return SimpleNamespace(discard=lambda: None)

    def find(index, layer, forward):
        def later():
            called.append(index)
            return made(index)

        return later

    checkpoint = SimpleNamespace(blocks=BLOCKS)
    stream = SimpleNamespace(checkpoint=checkpoint, ranks=ranks, run=run)
    return pass_over(stream, [], find, Passing(progress=lambda *how: told.append(how)))


@pytest.mark.parametrize(
    ("rank", "world", "own", "after"),
    [
        (0, 1, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]),
        (0, 2, [0, 2, 4], [0, 2, 2, 4, 5]),
        (1, 2, [1, 3], [0, 2, 2, 4, 5]),
        (2, 3, [2], [0, 0, 3, 3, 5]),
    ],
)
def test_each_rank_makes_its_own_and_has_all(rank, world, own, after):
    called: list[int] = []
    told: list[tuple[int, int]] = []
    ranks = OneOf(rank, world) if world > 1 else Alone()
    results = passed(ranks, called, told)
    assert [block["x"].item() for block in results] == [*range(BLOCKS)]
    assert called == own
    assert [done for done, _ in told] == after
