"""BESA on channels: its gradient, its budget, what it learns beside the exact optimum, its refusals."""

import json
from functools import partial

import pytest
import torch
from jobs import compress, said, same_bytes

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.measuring.besa import (
    Gate,
    Suffix,
    check_activation,
    learn,
    learn_block,
    within_budget,
)
from compressor.measuring.landscape import BlockCuts, measure_landscape
from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES
from compressor.model.groups import GROUPS
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.allocation import allocate
from compressor.planning.costs import Costs
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Wanted, lattice
from compressor.planning.measured import learned_groups, near_path, neighbours
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet

LATTICE = {"attention": [1, 2, 4], "ffn": [4, 8, 12, 16]}
COSTS = {"attention": 4, "ffn": 1}
PRICES = {group: range(0, 99 * cost, cost) for group, cost in COSTS.items()}


def texts(count=6) -> TokenSet:
    torch.manual_seed(2)
    return TokenSet([torch.randint(3, 40, (18 + i % 3,)) for i in range(count)])


def gates_of(seed: int = 0) -> dict[str, Gate]:
    generator = torch.Generator().manual_seed(seed)
    return {
        g: Gate.of(widths, torch.rand(widths[-1], generator=generator))
        for g, widths in LATTICE.items()
    }


def test_gates_let_the_best_through_and_carry_the_probabilities():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    gate = Gate.of([1, 2, 4], scores)
    beta = torch.tensor([0.2, 0.7, 0.1], requires_grad=True)
    z = gate.gates(beta, None)
    assert z.tolist() == [0.0, 1.0, 0.0, 1.0]
    worth = torch.tensor([3.0, 5.0, 7.0, 11.0])
    (z * worth).sum().backward()
    # A unit stays with the probability of all wider candidates: by place 1, .8, .1, .1.
    prefix = worth[[1, 3, 2, 0]].cumsum(0)[[0, 1, 3]]
    assert torch.allclose(beta.grad - beta.grad[0], prefix - prefix[0])


def test_drawn_widths_follow_beta():
    gate, beta = gates_of()["ffn"], torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = torch.stack([gate.width(beta, (7, i)) for i in range(2000)])
    shares = torch.stack([(drawn == w).float().mean() for w in LATTICE["ffn"]])
    torch.testing.assert_close(shares, beta, atol=0.04, rtol=0)
    assert drawn[:50].equal(torch.stack([gate.width(beta, (7, i)) for i in range(50)]))


@pytest.mark.parametrize("kept", [0.35, 0.6, 0.9])
def test_the_budget_holds_and_is_not_in_the_gradient(kept):
    generator = torch.Generator().manual_seed(1)
    thetas = {
        g: torch.randn(len(w), generator=generator, dtype=torch.float64).requires_grad_()
        for g, w in LATTICE.items()
    }
    shares = {g: torch.tensor(w).double() * COSTS[g] / 32 for g, w in LATTICE.items()}
    betas = within_budget(thetas, shares, kept)
    cost = sum(beta @ shares[g] for g, beta in betas.items())
    assert cost.item() == pytest.approx(kept, abs=1e-6)
    for gradient in torch.autograd.grad(cost, thetas.values(), retain_graph=True):
        assert gradient.abs().max() < 1e-6
    given = [thetas[g] for g in GROUPS]

    def rebuilt(*values):
        found = within_budget(dict(zip(GROUPS, values, strict=True)), shares, kept)
        return tuple(found[g] for g in GROUPS)

    assert torch.autograd.gradcheck(rebuilt, given, atol=1e-5)


@pytest.mark.parametrize("sampling", ["none", "categorical"])
def test_the_split_that_costs_least_error_is_learned(sampling):
    """Errors that are sums over units: one group is worth keeping, the other is not."""
    gates = gates_of()
    for worthy in GROUPS:
        worth = {g: (10.0 if g == worthy else 0.1) * COSTS[g] for g in GROUPS}

        def error(_, z, worth=worth):
            return sum(worth[g] * (1 - z[g]).sum() for g in GROUPS) / 100

        found = learn(error, 3, gates, PRICES, 0, sampling, (0.25, 0.4))
        assert found.equal(learn(error, 3, gates, PRICES, 0, sampling, (0.25, 0.4)))
        place = GROUPS.index(worthy)
        share = found / torch.tensor([LATTICE[g][-1] for g in GROUPS])
        assert (share[:, place] > share[:, 1 - place] + 0.2).all()
        costs = found @ torch.tensor([COSTS[g] for g in GROUPS], dtype=torch.float64)
        assert costs.tolist() == pytest.approx([0.75 * 32, 0.6 * 32], rel=1e-3)


def run_block(folder, check) -> None:
    """`check` the first block's `BlockCuts`, with `rerun` its forward."""
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, dtype=torch.float64)
    batches = texts().batches()

    def visit(index, layer, forward) -> None:
        cuts = BlockCuts(stream, BlockGeometry.of(checkpoint), layer, batches, len(batches), False)
        cuts.observe(forward)
        cuts.rerun = forward
        if index == 0:
            check(cuts)

    stream.run([b.ids for b in batches], visit)


def test_the_error_is_the_cut_blocks(any_family):
    """Against the block with the same units alone, run from its inputs; all families."""
    family = Checkpoint(any_family).family

    def check(cuts) -> None:
        geometry = cuts.geometry
        kept = {"attention": [0, 2], "ffn": [*range(5, 40, 3)]}
        z = {}
        for g, units in kept.items():
            z[g] = torch.zeros(geometry.units[g], dtype=torch.float64)
            z[g][units] = 1.0
        wanted, seen = cuts.rows(cuts.out, 0), []
        found = Suffix(cuts).error(0, z)
        with only_units(cuts.layer, geometry, kept):
            handle = cuts.layer.register_forward_hook(
                lambda _, args, out: seen.append(states_of(out))
            )
            for _ in cuts.rerun():
                break
            handle.remove()
        out = states_of(seen[0])[cuts.batches[0].mask]
        expected = ((out - wanted).square().sum(0) / wanted.square().sum(0)).mean()
        torch.testing.assert_close(found, expected)

    if family.post_norms:
        with pytest.raises(
            InputError, match="norms that before it is added; use --allocate uniform"
        ):
            run_block(any_family, check)
    else:
        run_block(any_family, check)


@pytest.fixture(scope="module")
def learned(llama) -> Scores:
    checkpoint = Checkpoint(llama)
    stream = BlockStream(checkpoint)
    scores = score(checkpoint, "besa", None, texts(), stream)
    prices = Costs.of(checkpoint).prices["params"]
    learning = partial(learn_block, prices=prices, seed=0, sampling="none")
    measure_landscape(
        scores.blocks, stream, texts(), lattice(checkpoint), "none", learning
    ).keep_with(scores)
    return scores


@pytest.mark.parametrize("share", [0.65, 0.8, 0.9])
@pytest.mark.parametrize("alike", [True, False])
def test_beside_the_exact_optimum(llama, learned, share, alike):
    """Within the budget, never below the optimum's error, and near it; better than the worst split."""
    checkpoint, target = Checkpoint(llama), Target("keep-blocks", share)
    steps = {"attention": Landscape.of(learned).attention, "ffn": Landscape.of(learned).ffn}

    def error(how) -> float:
        plan = allocate(
            learned, checkpoint, target, Wanted(layout="uniform" if alike else "per-layer"), how=how
        )
        assert plan.about["keep_blocks_reached"] <= share
        assert share - plan.about["keep_blocks_reached"] < 0.05
        places = [tuple(steps[g].index(w[g]) for g in GROUPS) for w in plan.widths()]
        return sum(e[p].item() for e, p in zip(Landscape.of(learned).errors, places, strict=True))

    exact, found = error("exact"), error("besa")
    assert exact <= found * (1 + 1e-9)
    assert found <= 1.25 * exact


def test_the_same_seed_learns_the_same(llama, learned, tmp_path):
    learned.save(tmp_path / "s.safetensors")
    loaded = Landscape.of(Scores.load(tmp_path / "s.safetensors"))
    assert all(
        a.equal(b) for a, b in zip(loaded.learned, Landscape.of(learned).learned, strict=True)
    )


def test_places_next_to_a_path():
    path = torch.tensor([[3.0, 14.0], [2.0, 9.0]], dtype=torch.float64)
    places = near_path(path, LATTICE)
    assert (2, 3) in places and (0, 0) in places and places == sorted(places)
    assert (1, 1) in places and (1, 2) in places  # around 2 x 9
    assert (2, 0) not in places and (0, 3) not in places
    assert neighbours(2.0, [1, 2, 4]) == [2] and neighbours(3.0, [1, 2, 4]) == [2, 4]
    assert neighbours(9.0, [1, 2, 4]) == [4]
    assert learned_groups([path, path], LATTICE, PRICES, 4 * 3.0 + 14.0) == [2, 4]
    assert learned_groups([path, path], LATTICE, PRICES, 32) == [4]
    assert learned_groups([path, path], LATTICE, PRICES, 8) == [1]


def test_scores_that_have_learned_nothing(llama):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match="score again with --allocate besa"):
        allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), how="besa")


def test_losses_that_are_not_finite():
    with pytest.raises(InputError, match="The loss is nan at step 0"):
        learn(lambda i, z: z["ffn"].sum() * torch.nan, 2, gates_of(), PRICES)


def test_unknown_activations():
    with pytest.raises(InputError, match="has 'relu'; use --allocate exact"):
        check_activation("relu", FAMILIES["llama"])


def test_the_method_besa_compares_and_repeats(llama, text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("compressor.measuring.besa.STEPS", 4)
    options = ["--keep", "0.8", "0.7", "--method", "besa", "--length", "32", "--samples", "10"]
    options += ["--calibration", str(text_file), "--no-verify", "--besa-sampling", "categorical"]
    for name in ("a", "b"):
        assert compress(llama, tmp_path / name, *options, "--json") == 0
        results = json.loads(capsys.readouterr().out)
        for result in results:
            assert result["allocate"] == "besa"
            rows = [row["allocation"] for row in result["held_back"]["rows"]]
            assert rows[:3] == ["besa", "exact", "uniform"]
    for keep in ("keep-0.8", "keep-0.7"):
        for file in (SINGLE, "compression.json"):
            one, other = (tmp_path / name / keep / file for name in ("a", "b"))
            assert same_bytes(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--besa-sampling", "dice"], "none or categorical, not 'dice'"),
        (["--besa-sampling", "categorical"], "add --allocate besa, or leave it out"),
        (["--method", "besa", "--mode", "bip"], "no mode 'bip'"),
    ],
)
def test_refusals(llama, text_file, tmp_path, capsys, options, words):
    asked = [str(llama), str(tmp_path / "out"), "--keep", "0.7", "--calibration", str(text_file)]
    assert compress(*asked, *options) == 2
    assert words in said(capsys)
