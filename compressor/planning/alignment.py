"""Which multiple FFN widths are of, for a target: the widest that comes near enough.

Kernels want wide multiples, and a target wants fine ones: with FFN widths in multiples of 128 equal
blocks of 1,536 channels have 12 sizes, 5 points apart. So without --align each target has its own
multiple, the widest of the usual ones (`lattice.MULTIPLES`) that ends within half a point of it, in the
unit that was asked for. Where not even 8 does, 4, 2 or 1 is taken, and said.

Equal widths that nothing measured decides are solved on every multiple (the rule `solved`). Elsewhere
it is not known beforehand where widths end, so the step must be fine enough wherever that is, and
`lattice.CHOICE` widths must be there to choose from. Where splits between attention and FFN are
compared, a step in all blocks is at most one point (half a point of a bound, above which nothing will
do), for then all of them come within half a point (`compared`). Where each block has its own widths and
nothing is compared, that holds for a step in one block (`own`). Of a target's value these two ask only
that the narrowest widths reach it, so they serve for what is measured before there is one (`ANY`), with
the blocks' weights as the unit, of which a step is the larger share.

Usual multiples divide each other, so what was measured on one lattice holds for all coarser ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from compressor.config.target import Target
from compressor.model.source import Source
from compressor.planning.costs import CLOSE, Costs, meets, miss_of, reached, unit_of
from compressor.planning.lattice import CHOICE, MULTIPLES, Lattice, Wanted
from compressor.planning.reach import least_widths
from compressor.planning.uniform import (
    everywhere,
    free_blocks,
    narrowest,
    nearest_splits,
    taken_split,
)

RULES = ("solved", "compared", "own")
ANY = Target("keep-blocks", 1)  # of what is measured before there is a target


@dataclass(frozen=True)
class Outcome:
    """A lattice, and how near to a target it comes.

    step: the largest step between FFN widths, as a share of the target's unit, in all blocks that may
    be cut or, of the rule `own`, in one. reached: what equal widths come to in that unit, by the rule
    `solved`, None where it has none; miss: by how much of the unit they are above the target.
    """

    lattice: Lattice
    step: float
    reached: float | None = None
    miss: float | None = None

    @property
    def align(self) -> int:
        return self.lattice.align

    @property
    def lands(self) -> bool:
        return self.miss is not None and abs(self.miss) <= CLOSE


@dataclass(frozen=True)
class Alignment:
    """What a target got, and what others would have come to.

    wider: the next wider of the usual multiples; narrowest: the narrowest of them; None if none is.
    """

    target: Target
    wanted: Wanted
    protect: Sequence[int]
    rule: str
    taken: Outcome
    wider: Outcome | None = None
    narrowest: Outcome | None = None

    @property
    def lattice(self) -> Lattice:
        return self.taken.lattice

    @property
    def align(self) -> int:
        return self.taken.align


def alignment_of(
    target: Target,
    checkpoint: Source,
    wanted: Wanted,
    protect: Sequence[int] = (),
    rule: str = "solved",
    known: Sequence[int] | None = None,
) -> Alignment:
    """The lattice for a target by one of `RULES`; with --align what it says, whatever comes of it.

    known: the FFN widths of which errors were measured, where others are of no use.
    InputError for a multiple that is wider than the model, and what `lattice` refuses.
    """
    costs = Costs.of(checkpoint, target.budget)
    narrow = narrowest(free_blocks(costs, protect))["ffn"] or checkpoint.units["ffn"]
    lattices = [wanted.lattice(checkpoint, m) for m in wanted.multiples_of(checkpoint, narrow)]
    if known is not None:
        lattices = [lattice for lattice in lattices if {*lattice.ffn} <= {*known}] or lattices
    outcomes = []
    for lattice in lattices:
        outcomes.append(outcome(target, costs, lattice, protect, rule))
        if enough(outcomes[-1], target, costs, protect, rule):
            break
    place = len(outcomes) - 1
    if rule == "solved" and not outcomes[place].lands:
        places = [i for i, tried in enumerate(outcomes) if tried.miss is not None]
        place = min(places, key=lambda i: abs(outcomes[i].miss), default=place)
    usual = [tried for tried in outcomes if tried.align % MULTIPLES[-1] == 0]
    return Alignment(
        target,
        wanted,
        protect,
        rule,
        outcomes[place],
        outcomes[place - 1] if place else None,
        usual[-1] if usual else None,
    )


def outcome(
    target: Target, costs: Costs, lattice: Lattice, protect: Sequence[int], rule: str
) -> Outcome:
    """What a lattice makes of a target."""
    unit = unit_of(target, costs)
    prices = costs.prices[target.measure]["ffn"]
    blocks = [units for units in free_blocks(costs, protect) if units["ffn"]]
    steps = [prices[wide] - prices[narrow] for narrow, wide in pairwise(lattice.ffn)]
    step = max(steps, default=prices[lattice.ffn[-1]]) * (1 if rule == "own" else len(blocks))
    splits = nearest_splits(target, costs, lattice, protect) if rule == "solved" else []
    if not splits:
        return Outcome(lattice, step / unit)
    split = taken_split(target, costs, lattice, splits, protect)
    size = costs.size(everywhere(split, costs, protect), target.measure)
    miss = miss_of(target, costs, size)
    return Outcome(lattice, step / unit, reached(target, costs, size), miss)


def enough(
    outcome: Outcome, target: Target, costs: Costs, protect: Sequence[int], rule: str
) -> bool:
    """Whether no finer lattice is needed."""
    if rule == "solved":
        return outcome.lands
    finest = CLOSE if target.hard else 2 * CLOSE
    if len(outcome.lattice.ffn) < CHOICE or outcome.step > finest:
        return False
    least = costs.size(least_widths(costs, outcome.lattice, protect), target.measure)
    return target is ANY or meets(target, costs, least)
