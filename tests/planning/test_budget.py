"""Budgets in FLOPs and in a table of costs, against counters and against all plans."""

import json
from itertools import pairwise, product

import pytest
import torch
from jobs import compress

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.groups import GROUPS
from compressor.model.loading import load
from compressor.model.widths import model_widths
from compressor.model.work import parts
from compressor.planning.allocation import allocate
from compressor.planning.budget import PARTS, flops_of, table_of
from compressor.planning.costs import CLOSE, Costs
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Wanted, lattice
from compressor.planning.uniform import solve
from compressor.scoring.score import score


def write_table(checkpoint, folder, **changed) -> str:
    """Costs that do not grow evenly, as those of a machine."""
    most = checkpoint.units
    table = {
        "attention": {str(n): 2 + n**0.5 for n in (1, most["attention"])},
        "ffn": {"1": 1.0, str(most["ffn"] // 2): 1.5, str(most["ffn"]): 4.0},
        "other": 3,
    }
    path = folder / "table.json"
    path.write_text(json.dumps(table | changed))
    return str(path)


@pytest.fixture
def quick(text_file):
    options = ["--calibration", text_file, "--length", 32, "--samples", 10, "--no-verify"]
    return [str(o) for o in (*options, "--method", "random")]


def with_landscape(checkpoint, align=1):
    """Scores, and errors of all cuts that fall with every unit."""
    scores, widths = score(checkpoint, "magnitude"), lattice(checkpoint, align)
    torch.manual_seed(1)
    steps = torch.rand(checkpoint.blocks, len(widths.attention), len(widths.ffn)).double()
    errors = steps.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)
    learned = [torch.tensor([[1.0, 1.0]]).double() for _ in errors]
    Landscape(list(errors), widths.attention, widths.ffn, {}, learned).keep_with(scores)
    return scores


def test_flops_are_those_of_the_cut_checkpoint(any_kinds, quick, tmp_path, capsys):
    layout = "per-layer" if Checkpoint(any_kinds).family.ffn_fixed else "uniform"
    given = ["--keep", "0.8", "--budget", "flops", "--layout", layout, "--json", *quick]
    assert compress(any_kinds, tmp_path / "out", *given) == 0
    found = json.loads(capsys.readouterr().out)
    context = min(2048, Checkpoint(any_kinds).config["max_position_embeddings"])
    before, after = (
        sum(part.prefill.flops for part in parts(model_widths(Checkpoint(folder)), 1, context))
        for folder in (any_kinds, tmp_path / "out")
    )
    assert found["budget"] == "flops"
    assert found["budget_reached"] == pytest.approx(after / before, rel=1e-9)
    blocks = Checkpoint(any_kinds).blocks
    channel = flops_of(Checkpoint(any_kinds))[0]["ffn"] * blocks / before
    assert abs(after / before - 0.8) <= max(CLOSE, channel / 2)
    load(tmp_path / "out")


@pytest.mark.parametrize("how", ["uniform", "global", "exact", "besa"])
@pytest.mark.parametrize("kind", ["keep", "keep-blocks"])
@pytest.mark.parametrize("budget", ["flops", "table"])
def test_plans_come_as_near_to_a_share_as_a_step_allows(llama, tmp_path, how, kind, budget):
    checkpoint = Checkpoint(llama)
    scores = with_landscape(checkpoint)
    budget = write_table(checkpoint, tmp_path) if budget == "table" else budget
    reached = []
    for share in (0.75, 0.8, 0.9):
        target = Target(kind, share, budget)
        plan = allocate(
            scores,
            checkpoint,
            target,
            Wanted(layout="uniform" if how == "uniform" else "per-layer"),
            how=how,
        )
        reached.append(plan.about["budget_reached"])
        costs = Costs.of(checkpoint, budget)
        size = costs.size(plan.widths(), target.measure)
        whole = costs.total[target.measure]
        part = whole if kind == "keep" else costs.movable(target.measure)
        assert reached[-1] == pytest.approx(1 - (whole - size) / part)
        # Where all channels stay, single KV groups are the steps that are left.
        all_stay = all(w["ffn"] == checkpoint.units["ffn"] for w in plan.widths())
        prices = costs.prices[target.measure]["attention" if all_stay else "ffn"]
        step = max(wide - narrow for narrow, wide in pairwise(prices[1:])) / part
        step *= checkpoint.blocks if how == "uniform" else 1
        assert abs(reached[-1] - share) <= max(CLOSE, step / 2)
    assert reached == sorted(reached)
    assert reached[-1] > 0.75


@pytest.mark.parametrize("budget", ["params", "flops", "table"])
def test_exact_is_the_best_of_all_plans_in_the_budget(llama, tmp_path, budget):
    """Or a step more, where that comes nearer to the share."""
    checkpoint = Checkpoint(llama)
    scores = with_landscape(checkpoint, align=8)
    budget = write_table(checkpoint, tmp_path) if budget == "table" else budget
    target = Target("keep", 0.85, budget)
    costs, landscape = Costs.of(checkpoint, budget), Landscape.of(scores)
    limit = 0.85 * costs.total[target.measure]
    steps = {"attention": landscape.attention, "ffn": landscape.ffn}

    def error(widths) -> float:
        places = [tuple(steps[g].index(w[g]) for g in GROUPS) for w in widths]
        return sum(e[p].item() for e, p in zip(landscape.errors, places, strict=True))

    def size(widths) -> int:
        return costs.size(widths, target.measure)

    a_block = [{"attention": a, "ffn": f} for a, f in product(*steps.values())]
    plans = product(a_block, repeat=checkpoint.blocks)
    best = min(error(widths) for widths in plans if size(widths) <= limit)
    found = allocate(
        scores, checkpoint, target, Wanted(align=8, layout="per-layer"), how="exact"
    ).widths()
    without = [found]
    if size(found) > limit:
        assert size(found) - limit < limit - min(map(size, narrower(found, steps)))
        without = [w for w in narrower(found, steps) if size(w) <= limit]
    assert min(map(error, without)) == pytest.approx(best)


def narrower(widths, steps) -> list:
    """The same with a group of one block a step narrower, all that there are."""
    return [
        [*widths[:b], own | {g: steps[g][steps[g].index(own[g]) - 1]}, *widths[b + 1 :]]
        for b, own in enumerate(widths)
        for g in GROUPS
        if own[g] > steps[g][0]
    ]


def test_a_table_is_interpolated(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    units = checkpoint.units["ffn"]
    path = write_table(checkpoint, tmp_path, ffn={"8": 2.0, str(units): 2.0 + units - 8})
    prices, rest, total = table_of(path, checkpoint)
    groups = checkpoint.units["attention"]
    whole = 3 + checkpoint.blocks * (2 + groups**0.5 + units - 6)
    assert total == PARTS and rest == pytest.approx(PARTS * 3 / whole, abs=1)
    assert prices["ffn"][0] == 0 and prices["ffn"][1] == prices["ffn"][8]
    for n in (8, 9, units // 2, units):
        assert prices["ffn"][n] == pytest.approx(PARTS * (n - 6) / whole, abs=1)
        assert prices["ffn"][n] >= PARTS * (n - 6) / whole - 1e-9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"other": -1}, "has -1.0 for `other`"),
        ({"other": None}, "has None for other, which is no number"),
        ({"ffn": [1.0]}, "has for ffn something else than an object"),
        ({"ffn": {"8": None}}, "has for ffn something else than an object"),
        ({"ffn": {}}, "needs ffn costs above 0"),
        ({"ffn": {"4": 1.0}}, "has ffn costs up to 4 units; the model has"),
        ({"ffn": {"4": 3.0, "4000": 2.0}}, "ffn costs that fall"),
        ({"attention": {"1": 0.0, "64": 1.0}}, "needs attention costs above 0"),
        (
            {"attention": {"one": 1.0}},
            "has for attention something else than an object",
        ),
        ({"attention": {"1": float("nan"), "64": 1.0}}, "needs attention costs above 0"),
    ],
)
def test_tables_that_are_none_are_named(llama, tmp_path, changed, message):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match=message):
        table_of(write_table(checkpoint, tmp_path, **changed), checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "table.json does not exist."),
        ("attention: 3", "table.json is not JSON."),
        ("[1, 2]", "holds no object: it needs an object with attention, ffn, other."),
        ('{"ffn": {"1": 1.0}}', "lacks attention, other: it needs an object with"),
    ],
)
def test_files_that_are_no_tables_are_named(llama, tmp_path, text, message):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        table_of(path, Checkpoint(llama))
    assert message in str(caught.value)
    with pytest.raises(InputError, match=r"and .* cannot be read \(Is a directory\)"):
        table_of(tmp_path, Checkpoint(llama))


@pytest.mark.parametrize(("budget", "counted"), [("table", False), ("flops", True)])
def test_an_unreachable_share_names_the_smallest(llama, tmp_path, budget, counted):
    checkpoint = Checkpoint(llama)
    given = write_table(checkpoint, tmp_path) if budget == "table" else budget
    with pytest.raises(InputError, match=r"smallest possible is 0\.\d+") as caught:
        solve(Target("keep", 0.05, given), checkpoint, lattice(checkpoint))
    assert (" flops). " in str(caught.value)) == counted and "parts" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--keep", "0.7", "--budget", "nowhere.json"], "--budget is params, flops or a JSON file"),
        (["--target-params", "1000", "--budget", "flops"], "--target counts parameters or bytes"),
        (["--quantize", "w4a16", "--budget", "flops"], "needs --keep or --keep-blocks"),
    ],
)
def test_bad_input_is_named(llama, tmp_path, capsys, given, message):
    assert compress(llama, tmp_path / "out", *given) == 2
    found = capsys.readouterr()
    assert message in " ".join((found.out + found.err).split())


def test_the_same_budget_resumes(llama, quick, tmp_path, monkeypatch, capsys):
    """A table that was changed is another budget."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    table = write_table(Checkpoint(llama), tmp_path)
    asked = [str(llama), str(tmp_path / "out"), "--keep", "0.8", "--budget", table, *quick]
    with monkeypatch.context() as patched:
        patched.setattr("compressor.job.result.write_folder", interrupt)
        assert compress(*asked) == 130
    write_table(Checkpoint(llama), tmp_path, other=4)
    assert compress(*asked, "--resume") == 2
    assert "--budget" in capsys.readouterr().err
    write_table(Checkpoint(llama), tmp_path)
    assert compress(*asked, "--resume") == 0
