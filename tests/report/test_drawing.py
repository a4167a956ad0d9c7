"""The picture of a result: the arrays behind its panels, and that it is drawn, or said not to be."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from jobs import compress, stage

from compressor.config.target import Target
from compressor.errors import MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.planning.allocation import allocate
from compressor.planning.costs import Costs
from compressor.planning.landscape import Landscape
from compressor.planning.lattice import Wanted, lattice
from compressor.planning.plan import Plan
from compressor.planning.ranking import normalised
from compressor.report.drawing import (
    PICTURE,
    block_sparsity,
    cut_levels,
    draw,
    figure_of,
    kept_shares,
    loss_curves,
    quantiles,
    ranked_sparsity,
    varying_rates,
)
from compressor.scoring.score import score
from compressor.scoring.scores import Scores

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def fused(llama) -> Scores:
    """Random scores with everything that a fusing method adds."""
    checkpoint = Checkpoint(llama)
    coarse, fine, alpha = (score(checkpoint, "random", seed=s).blocks for s in range(3))
    for scale, block in zip((0.3, 1.0, 3.0), coarse, strict=True):
        block.update({group: scale * values for group, values in block.items()})
    blocks = [
        {g: a[g] * c[g] + (1 - a[g]) * f[g] for g in a}
        for a, c, f in zip(alpha, coarse, fine, strict=True)
    ]
    about = {"method": "hywia", "mode": "attention", "source": str(llama)}
    return Scores(blocks, about, {"coarse": coarse, "fine": fine}, {"coarse": alpha})


def planned(
    scores: Scores, llama, how: str = "global", align: int | None = None, **options
) -> tuple:
    """The arguments of a drawing: scores, plan, checkpoint, lattice."""
    checkpoint = Checkpoint(llama)
    plan = allocate(
        scores, checkpoint, Target("keep-blocks", 0.6), Wanted(align), how=how, **options
    )
    return scores, plan, checkpoint, lattice(checkpoint, plan.about["align"])


def test_shares_of_what_stays():
    plan = Plan(
        [{"attention": [0], "ffn": [1, 2, 5]}, {"attention": [0, 1], "ffn": list(range(6))}]
    )
    shares = kept_shares(plan, [{"attention": 2, "ffn": 6}] * 2)
    assert {g: s.tolist() for g, s in shares.items()} == {"attention": [50, 100], "ffn": [50, 100]}


def test_quantiles_of_every_block():
    values = [torch.arange(101.0), 2 * torch.arange(101.0).flip(0)]
    expected = np.array([5, 25, 50, 75, 95])
    assert np.allclose(quantiles(values), np.stack([expected, 2 * expected], 1))


def test_cut_is_at_the_lowest_that_stays():
    values = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.1, 0.2])]
    levels = cut_levels(values, [[0, 2], [0, 1, 2]])
    assert levels[0] == 2 and math.isnan(levels[1])


def test_a_global_cut_is_at_one_level(fused, llama):
    """What goes anywhere scores no more than what stays anywhere, channel by channel."""
    scores, plan, *_ = planned(fused, llama, align=1)
    values, kept = normalised(scores.blocks, "ffn"), [block["ffn"] for block in plan.blocks]
    gone = [sorted({*range(len(v))} - {*units}) for v, units in zip(values, kept, strict=True)]
    highest = max(v[units].max().item() for v, units in zip(values, gone, strict=True) if units)
    assert min(len(units) for units in kept) > 1
    assert highest <= np.nanmin(cut_levels(values, kept))


@pytest.mark.parametrize("how", ["uniform", "global"])
def test_sparsities_average_to_what_was_reached(fused, llama, how):
    _, plan, checkpoint, _ = planned(fused, llama, how)
    sparsity = block_sparsity(plan.widths(), checkpoint.block_units, Costs.of(checkpoint))
    assert sparsity.mean() == pytest.approx(100 * (1 - plan.about["keep_blocks_reached"]))
    assert (np.ptp(sparsity) == 0) == (how == "uniform")


@pytest.mark.parametrize("how", ["uniform", "global"])
def test_sparsity_by_each_part_is_that_of_a_global_plan(fused, llama, how):
    arguments = planned(fused, llama, how, align=4, protect=[-1])
    _, plan, checkpoint, _ = arguments
    found = ranked_sparsity(*arguments)
    assert found.keys() == {"coarse", "fine", "fused"}
    for name in found:
        blocks = fused.parts.get(name, fused.blocks)
        alone = planned(Scores(blocks), llama, align=4, protect=[-1])[1]
        expected = block_sparsity(alone.widths(), checkpoint.block_units, Costs.of(checkpoint))
        assert found[name].tolist() == expected.tolist()
        assert found[name][-1] == 0
    assert found["coarse"][0] > found["fine"][0]
    assert (found["fused"].tolist() == kept_sparsity(plan, checkpoint)) == (how == "global")


def kept_sparsity(plan: Plan, checkpoint: Checkpoint) -> list[float]:
    return block_sparsity(plan.widths(), checkpoint.block_units, Costs.of(checkpoint)).tolist()


def test_panels_show_the_arrays(fused, llama):
    _, plan, checkpoint, _ = arguments = planned(fused, llama)
    panels = {axes.get_label(): axes for axes in figure_of(*arguments).axes}
    assert list(panels) == [
        "ffn", "attention", "coarse rate ffn", "coarse rate attention", "scores ffn",
        "scores attention", "sparsity",
    ]  # fmt: skip
    for group, shares in kept_shares(plan, checkpoint.block_units).items():
        assert [bar.get_height() for bar in panels[group].patches] == shares.tolist()
        means = [block[group].mean().item() for block in fused.rates["coarse"]]
        assert panels[f"coarse rate {group}"].lines[0].get_ydata() == pytest.approx(means)
        units = checkpoint.units[group] * checkpoint.blocks
        marks = [c for c in panels[f"scores {group}"].collections if c.get_label() != "cut"]
        assert sum(len(c.get_offsets()) for c in marks) == units
    lines = {line.get_label(): line.get_ydata() for line in panels["sparsity"].lines}
    for name, sparsity in ranked_sparsity(*arguments).items():
        assert lines[f"global ranking, {name}"].tolist() == sparsity.tolist()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in panels.values())


def test_without_rates_there_are_widths_and_scores(llama):
    figure = figure_of(*planned(score(Checkpoint(llama), "magnitude"), llama))
    labels = [axes.get_label() for axes in figure.axes]
    assert labels == ["ffn", "attention", "scores ffn", "scores attention"]


def test_a_fixed_rate_is_not_drawn(fused):
    assert varying_rates(fused) == fused.rates
    fixed = [{group: torch.full_like(v, 0.5) for group, v in b.items()} for b in fused.blocks]
    assert varying_rates(Scores(fused.blocks, {}, {}, {"coarse": fixed})) == {}
    assert varying_rates(Scores(fused.blocks)) == {}


def test_png(fused, llama, tmp_path):
    for name in "ab":
        draw(tmp_path / name, *planned(fused, llama))
    content = (tmp_path / "a").read_bytes()
    assert content.startswith(PNG) and 20_000 < len(content) < 200_000
    assert content == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scores_that_have_no_logarithm(make_checkpoint, tmp_path, value):
    folder = make_checkpoint(tmp_path / "m", num_hidden_layers=1, intermediate_size=96)
    checkpoint = Checkpoint(folder)
    scores = score(checkpoint, "magnitude")
    scores.blocks[0] = {group: torch.full_like(s, value) for group, s in scores.blocks[0].items()}
    draw(tmp_path / "p.png", *planned(scores, folder))
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def compressed(llama, dest) -> int:
    options = ["--method", "random", "--keep", 0.9, "--align", 1, "--no-verify", "--json"]
    options += ["--length", 64]
    return compress(llama, dest, *options)


def warnings(capsys) -> list[str]:
    """What is said of the result, but of its tokenizer."""
    found = json.loads(capsys.readouterr().out)["warnings"]
    return [warning for warning in found if not warning.startswith("tokenizer_config.json")]


def test_result_holds_its_picture(llama, tmp_path, capsys):
    assert compressed(llama, tmp_path / "out") == 0
    assert warnings(capsys) == []
    assert (tmp_path / "out" / PICTURE).read_bytes().startswith(PNG)
    assert f"({PICTURE})" in (tmp_path / "out/README.md").read_text()


def test_without_matplotlib_a_line_says_so(llama, tmp_path, capsys, no_matplotlib):
    assert compressed(llama, tmp_path / "out") == 0
    (warning,) = warnings(capsys)
    assert "matplotlib is not installed" in warning and "[report]" in warning
    assert not (tmp_path / "out" / PICTURE).exists()
    assert PICTURE not in (tmp_path / "out/README.md").read_text()
    with pytest.raises(MachineError, match="compressor-llm\\[report\\]"):
        checkpoint = Checkpoint(llama)
        draw(tmp_path / "p.png", *planned(score(checkpoint, "random"), llama))


def test_report_of_saved_scores(fused, llama, tmp_path, capsys):
    fused.save(tmp_path / "s.safetensors")

    def report(*options) -> int:
        arguments = ["report", tmp_path / "s.safetensors", "--out", tmp_path / "p.png", *options]
        return stage(*arguments)

    sizes = set()
    for options in ([], ["--keep", 0.6, "--allocate", "global", "--protect", "0", "--align", 2]):
        assert report(*options) == 0
        sizes.add((tmp_path / "p.png").stat().st_size)
    assert len(sizes) == 2
    assert report("--keep", 2) == 2
    assert report("--source", tmp_path / "gone") == 2
    assert report("--out", tmp_path / "gone" / "p.png") == 2
    assert report("--out", tmp_path / "p.svg") == 2
    errors = capsys.readouterr().err
    assert "between 0 and 1, not 2" in errors and errors.count("There is no folder") == 2


def test_curves_of_the_loss_are_drawn_where_they_were_measured(fused, llama, tmp_path):
    checkpoint = Checkpoint(llama)
    allowed = lattice(checkpoint)
    errors = torch.rand(len(allowed.attention), len(allowed.ffn), dtype=torch.float64)
    errors[-1, -1] = 0
    landscape = Landscape(
        [errors] * 3,
        allowed.attention,
        allowed.ffn,
        losses=[b * errors[1, -1:] for b in (1, 2, 3)],
        cuts=[(allowed.attention[1], allowed.ffn[-1])],
    )
    scores = Scores(fused.blocks, fused.about)
    landscape.keep_with(scores)
    units, nats = loss_curves(scores, "ffn")
    assert units == allowed.ffn and nats.shape == (3, len(units))
    np.testing.assert_allclose(nats, np.outer([1, 2, 3], errors[-1]))
    _, nats = loss_curves(scores, "attention")
    np.testing.assert_allclose(nats, np.outer([1, 2, 3], errors[:, -1]))
    assert loss_curves(fused, "ffn") is None
    figure = figure_of(scores, *planned(scores, llama)[1:])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert sum(title.startswith("Loss by") for title in titles) == 2
    figure = figure_of(*planned(fused, llama))
    assert not any(axes.get_title(loc="left").startswith("Loss by") for axes in figure.axes)
