"""Exact allocation against all plans of small problems."""

from itertools import product

import pytest
import torch

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.measuring.landscape import measure_landscape
from compressor.model.checkpoint import Checkpoint
from compressor.model.groups import GROUPS
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.planning.costs import CLOSE, Costs
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Wanted, lattice
from compressor.planning.uniform import constant_splits
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.solvers.exact import best_split, knapsack, own_widths
from compressor.text.tokens import TokenSet

LATTICE = {"attention": [1, 2, 3], "ffn": [2, 4, 5]}


def falling(seed: int, blocks: int = 3) -> list[torch.Tensor]:
    """Errors that fall with both widths, to zero."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(blocks):
        steps = torch.rand(3, 3, generator=generator, dtype=torch.float64)
        errors = steps.flip(0, 1).cumsum(0).cumsum(1).flip(0, 1)
        found.append(errors - errors[-1, -1])
    return found


def by_unit(costs):
    """What 0, 1, .. units cost that all cost the same."""
    return {group: range(0, 99 * cost, cost) for group, cost in costs.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kv_cost", [1, 3, 7])
def test_against_all_plans(seed, kv_cost):
    errors, costs = falling(seed), {"attention": kv_cost, "ffn": 2}
    pairs = list(product(*LATTICE.values()))
    plans = []
    for plan in product(range(len(pairs)), repeat=len(errors)):
        size = sum(pairs[c][0] * kv_cost + pairs[c][1] * 2 for c in plan)
        plans.append((size, sum(e.flatten()[c].item() for e, c in zip(errors, plan, strict=True))))
    for limit in range(min(plans)[0], max(plans)[0] + 2):
        widths = own_widths(errors, [LATTICE] * 3, by_unit(costs), limit)
        size = sum(w[g] * costs[g] for w in widths for g in GROUPS)
        place = [tuple(LATTICE[g].index(w[g]) for g in GROUPS) for w in widths]
        error = sum(e[p].item() for e, p in zip(errors, place, strict=True))
        assert size <= limit
        assert error == pytest.approx(min(e for s, e in plans if s <= limit))
        for width in widths:
            for group, steps in LATTICE.items():
                for wider in [n for n in steps if n > width[group]][:1]:
                    assert (wider - width[group]) * costs[group] > limit - size


def test_room_is_filled_where_errors_do_not_fall():
    """Units that help nothing come last, and still the size is as near the limit as it can be."""
    flat = torch.zeros(3, 3, dtype=torch.float64)
    widths = own_widths([flat, falling(0)[0]], [LATTICE] * 2, dict.fromkeys(GROUPS, range(99)), 15)
    assert widths[1] == {"attention": 3, "ffn": 5} and sum(widths[0].values()) == 7


def test_nothing_fits():
    with pytest.raises(InputError, match="Nothing that small"):
        knapsack([torch.tensor([2, 3])] * 2, [torch.zeros(2)] * 2, 3)


def test_split_of_the_least_sum():
    errors = falling(1)
    splits = [{"attention": 1, "ffn": 5}, {"attention": 2, "ffn": 4}, {"attention": 3, "ffn": 2}]
    sums = [sum(e[a, f] for e in errors) for a, f in ((0, 2), (1, 1), (2, 0))]
    assert best_split(splits, errors, LATTICE) == splits[sums.index(min(sums))]


@pytest.fixture(scope="module")
def measured(llama) -> Scores:
    checkpoint = Checkpoint(llama)
    torch.manual_seed(0)
    tokens = TokenSet([torch.randint(3, 120, (20,)) for _ in range(6)])
    scores = score(checkpoint, "random")
    stream = BlockStream(checkpoint, dtype=torch.float64)
    measure_landscape(scores.blocks, stream, tokens, lattice(checkpoint), "none").keep_with(scores)
    return scores


@pytest.mark.parametrize("kind", ["keep", "keep-blocks", "params", "bytes"])
@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_plans_are_the_best_that_fit(llama, measured, kind, share):
    checkpoint = Checkpoint(llama)
    whole = {"params": checkpoint.parameters, "bytes": checkpoint.bytes}.get(kind, 1)
    target, landscape = Target(kind, share * whole), Landscape.of(measured)
    steps = {"attention": landscape.attention, "ffn": landscape.ffn}

    def error(widths) -> float:
        place = [tuple(steps[g].index(w[g]) for g in GROUPS) for w in widths]
        return sum(e[p].item() for e, p in zip(landscape.errors, place, strict=True))

    plan = allocate(measured, checkpoint, target, how="exact")
    alike, allowed = plan.widths(), lattice(checkpoint, plan.about["align"])
    splits = constant_splits(target, checkpoint, allowed)
    assert alike[0] in splits and all(w == alike[0] for w in alike)
    assert error(alike) == min(error([s] * checkpoint.blocks) for s in splits)
    own = allocate(measured, checkpoint, target, Wanted(layout="per-layer"), how="exact").widths()
    costs = Costs.of(checkpoint)
    limit = {"keep": share, "keep-blocks": 1 - (1 - share) * costs.prunable / checkpoint.parameters}
    room = limit.get(kind, share) * costs.total[target.measure] - costs.size(own, target.measure)
    room -= costs.added[kind] if target.hard else 0
    step = allowed.align * costs.unit["ffn"][target.measure]
    assert 0 <= room < step if target.hard else abs(room) <= step / 2
    sizes = [costs.size(widths, target.measure) for widths in (own, alike)]
    assert error(own) <= error(alike) or sizes[0] < sizes[1]


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_with_as_many_groups_in_all_blocks(llama, measured, share):
    """Against all widths that there are."""
    checkpoint, target = Checkpoint(llama), Target("keep-blocks", share)
    wanted = Wanted(align=12, layout="nas")
    plan = allocate(measured, checkpoint, target, wanted, how="exact")
    widths, landscape = plan.widths(), Landscape.of(measured)
    costs, allowed = Costs.of(checkpoint), lattice(checkpoint, 12)

    def error(widths) -> float:
        places = [
            (landscape.attention.index(w["attention"]), landscape.ffn.index(w["ffn"]))
            for w in widths
        ]
        return sum(e[p].item() for e, p in zip(landscape.errors, places, strict=True))

    every = [
        [{"attention": groups, "ffn": ffn} for ffn in each]
        for groups in allowed.attention
        for each in product(allowed.ffn, repeat=3)
    ]
    assert widths in every and len({w["ffn"] for w in widths}) > 1
    size = costs.size(widths, "params")
    better = [w for w in every if costs.size(w, "params") <= size and error(w) < error(widths)]
    assert better == []


def test_protected_blocks_are_whole(llama, measured):
    target = Target("keep", 0.8)
    plan = allocate(
        measured,
        Checkpoint(llama),
        target,
        Wanted(layout="per-layer"),
        protect=[0, -1],
        how="exact",
    )
    widths = plan.widths()
    assert widths[0] == widths[2] == Checkpoint(llama).units and widths[1] != widths[0]
    assert plan.about["keep_reached"] == pytest.approx(0.8, abs=CLOSE)


def test_errors_are_kept_with_the_scores(llama, measured, tmp_path):
    measured.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert all(
        a.equal(b)
        for a, b in zip(Landscape.of(loaded).errors, Landscape.of(measured).errors, strict=True)
    )
    assert Landscape.of(loaded).described() == Landscape.of(measured).described()
    target = Target("keep", 0.7)
    plans = [allocate(s, Checkpoint(llama), target, how="exact") for s in (measured, loaded)]
    assert plans[0] == plans[1]


def test_scores_without_errors(llama):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match="needs what is measured of cuts"):
        allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), how="exact")


def test_errors_of_another_lattice(llama, measured):
    with pytest.raises(InputError, match="other widths, without 1"):
        allocate(measured, Checkpoint(llama), Target("keep", 0.7), Wanted(align=1), how="exact")
