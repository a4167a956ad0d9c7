"""Global allocation: against all plans of tiny problems, its budget, its order, its refusals."""

from itertools import accumulate, pairwise, product

import pytest
import torch

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.groups import GROUPS
from compressor.planning.allocation import allocate
from compressor.planning.costs import Costs
from compressor.planning.lattice import lattice
from compressor.planning.ranking import grow, ranked_steps
from compressor.scoring.score import score
from compressor.scoring.scores import Scores

LATTICE = {"attention": [1, 2, 3], "ffn": [2, 4, 5]}
LEAST = {group: widths[0] for group, widths in LATTICE.items()}


def random_blocks(seed: int, count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(count, generator=generator)
    return [
        {g: scale * torch.rand(widths[-1], generator=generator) for g, widths in LATTICE.items()}
        for scale in scales
    ]


def by_unit(costs):
    """What 0, 1, .. units cost that all cost the same."""
    return {group: range(0, 2000 * cost, cost) for group, cost in costs.items()}


def size_of(widths: list[dict[str, int]], costs: dict[str, int]) -> int:
    return sum(w[g] * costs[g] for w in widths for g in GROUPS)


def worth_of(widths, blocks, costs) -> float:
    """Score per parameter over its group's mean in the whole model, times parameters, summed."""
    total = 0.0
    for group in GROUPS:
        mean = torch.cat([block[group] for block in blocks]).double().mean()
        for width, block in zip(widths, blocks, strict=True):
            best = block[group].double().sort(descending=True).values[: width[group]]
            total += (best / mean).sum().item() * costs[group]
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kv_cost", [1, 3, 1000])
def test_against_all_plans(seed, kv_cost):
    """Where steps fill the room exactly, no plan of that size or less is better; else none fits on."""
    blocks, costs = random_blocks(seed), {"attention": kv_cost, "ffn": 1}
    steps = ranked_steps(blocks, LATTICE)
    a_block = [{"attention": a, "ffn": f} for a in LATTICE["attention"] for f in LATTICE["ffn"]]
    plans = [
        (size_of(widths, costs), worth_of(widths, blocks, costs))
        for widths in product(a_block, repeat=len(blocks))
    ]
    least = [dict(LEAST) for _ in blocks]
    begin = size_of(least, costs)
    exact = [*accumulate((s.units * costs[s.group] for s in steps), initial=begin)]
    before = 0.0
    for size in sorted({size for size, _ in plans}):
        grown = grow(least, steps, by_unit(costs), size - begin)
        reached, found = size_of(grown, costs), worth_of(grown, blocks, costs)
        if size in exact:
            assert reached == size
            assert found == pytest.approx(max(worth for other, worth in plans if other <= size))
            before = found
        following = {
            (s.block, s.group): s.units * costs[s.group]
            for s in reversed(steps)
            if s.width > grown[s.block][s.group]
        }
        assert all(cost > size - reached >= 0 for cost in following.values())
        assert found >= before
    assert least == [LEAST] * len(blocks)


def test_groups_compete_by_parameter():
    """An average parameter is worth the same in both groups, so a KV group stands for a thousand."""
    costs, widths = (
        {"attention": 1000, "ffn": 1},
        {"attention": [1, 2], "ffn": list(range(1, 1002))},
    )
    for second, expected in (
        (0.9, {"attention": 1, "ffn": 1001}),
        (1.3, {"attention": 2, "ffn": 1}),
    ):
        block = {"attention": torch.tensor([1.6, second, 0.5]), "ffn": torch.ones(1001)}
        grown = grow(
            [{"attention": 1, "ffn": 1}], ranked_steps([block], widths), by_unit(costs), 1000
        )
        assert grown == [expected]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_unit_of_a_groups_scores_does_not_matter(group, scale):
    blocks = random_blocks(0, count=6)
    scaled = [{**block, group: block[group].double() * scale} for block in blocks]
    order = [
        [(s.block, s.group, s.width) for s in ranked_steps(b, LATTICE)] for b in (blocks, scaled)
    ]
    assert order[0] == order[1]


def test_what_scores_know_between_blocks_is_kept():
    blocks = [{g: torch.full((w[-1],), 10.0**-b) for g, w in LATTICE.items()} for b in range(3)]
    assert [s.block for s in ranked_steps(blocks, LATTICE)] == [0] * 4 + [1] * 4 + [2] * 4


def test_ties_go_to_attention_and_the_lower_block():
    blocks = [{g: torch.zeros(w[-1]) for g, w in LATTICE.items()} for _ in range(2)]
    steps = ranked_steps(blocks, LATTICE)
    assert [(s.group, s.block, s.width) for s in steps] == [
        (group, block, width)
        for group in GROUPS
        for block in range(2)
        for width in LATTICE[group][1:]
    ]


@pytest.mark.parametrize("kind", ["keep", "keep-blocks", "params", "bytes"])
def test_budget_and_monotony(any_family, kind):
    checkpoint = Checkpoint(any_family)
    scores, costs = score(checkpoint, "magnitude"), Costs.of(checkpoint)
    whole = {"params": checkpoint.parameters, "bytes": checkpoint.bytes}.get(kind, 1)
    sizes = []
    for share in (0.5, 0.61, 0.72, 0.83, 0.94):
        target = Target(kind, share * whole)
        plan = allocate(scores, checkpoint, target, how="global")
        plan.check(checkpoint)
        widths, allowed = plan.widths(), lattice(checkpoint, plan.about["align"])
        limit = {
            "keep": share * checkpoint.parameters,
            "keep-blocks": checkpoint.parameters - (1 - share) * costs.prunable,
        }.get(kind, target.value - costs.added.get(kind, 0))
        sizes.append(costs.size(widths, target.measure))
        assert all(w["ffn"] in allowed.ffn and w["attention"] in allowed.attention for w in widths)
        steps = [
            (wide - narrow) * costs.unit[group][target.measure]
            for group, steps in (("ffn", allowed.ffn), ("attention", allowed.attention))
            for narrow, wide in pairwise(steps)
            if any(w[group] in (narrow, wide) for w in widths)
        ]
        if target.hard:
            assert 0 <= limit - sizes[-1] < max(steps)
        else:
            assert abs(limit - sizes[-1]) <= min(steps) / 2
        assert plan.about["allocate"] == "global"
        assert plan.about["bytes"] == costs.size(widths, "bytes")
    assert sizes == sorted(sizes)


def test_blocks_differ_and_the_best_units_stay(llama):
    checkpoint = Checkpoint(llama)
    values = score(checkpoint, "random").blocks
    for scale, block in zip((1.0, 4.0, 0.25), values, strict=True):
        block.update({group: scale * s for group, s in block.items()})
    scores = Scores(values)
    plan = allocate(scores, checkpoint, Target("keep-blocks", 0.6), how="global")
    widths = [w["ffn"] for w in plan.widths()]
    assert widths[1] > widths[0] > widths[2]
    for block, kept in zip(values, plan.blocks, strict=True):
        for group in GROUPS:
            rest = [u for u in range(len(block[group])) if u not in kept[group]]
            assert not rest or block[group][kept[group]].min() >= block[group][rest].max()
    assert plan == allocate(scores, checkpoint, Target("keep-blocks", 0.6), how="global")


def test_protected_blocks_are_not_touched(llama):
    checkpoint = Checkpoint(llama)
    scores = score(checkpoint, "random")
    plan = allocate(scores, checkpoint, Target("keep", 0.8), protect=[0, -1], how="global")
    assert plan.widths()[0] == plan.widths()[2] == checkpoint.units
    assert plan.widths()[1]["ffn"] < checkpoint.units["ffn"]
    with pytest.raises(InputError, match="smallest possible is"):
        allocate(scores, checkpoint, Target("keep", 0.5), protect=[0, -1], how="global")
    with pytest.raises(InputError, match="smallest possible is 1 "):
        allocate(scores, checkpoint, Target("keep", 0.99), protect=[0, 1, 2], how="global")


def test_smallest_target_leaves_one_step_everywhere(llama):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match=r"smallest possible is (0\.\d+)") as caught:
        allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.05), how="global")
    least = float(str(caught.value).split("smallest possible is ")[1].split()[0])
    target = Target("keep", least + 1e-4)
    plan = allocate(score(checkpoint, "random"), checkpoint, target, how="global")
    assert plan.widths() == [{"attention": 1, "ffn": 1}] * 3


def test_unknown_allocation(llama):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match="uniform, global, exact, measured or besa, not 'magic'"):
        allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), how="magic")
