"""Targets, the lattice, and the exactness of the reached size."""

import pytest
import torch

from compressor.config.target import Target
from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.planning.allocation import allocate
from compressor.planning.costs import CLOSE, Costs
from compressor.planning.lattice import default_align, lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.scoring.score import score
from compressor.scoring.scores import Scores, best


@pytest.mark.parametrize(
    ("width", "align"),
    [(11008, 256), (5632, 256), (2048, 128), (768, 32), (352, 16), (172, 8), (48, 2), (15, 1)],
)
def test_default_align(width, align):
    assert default_align(width) == align


@pytest.mark.parametrize("kind", ["keep", "keep-blocks", "params", "bytes"])
@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
def test_nearest_size_and_never_above_a_bound(any_family, kind, share):
    checkpoint = Checkpoint(any_family)
    whole = {"params": checkpoint.parameters, "bytes": checkpoint.bytes}.get(kind, 1)
    target = Target(kind, share * whole)
    plan = allocate(score(checkpoint, "random"), checkpoint, target)
    width, outer = plan.widths()[0], checkpoint.outer_tensors()
    counted = sum(
        tensor.numel()
        for b in range(checkpoint.blocks)
        for tensor in cut_block(checkpoint.read_block(b), checkpoint, plan.blocks[b]).values()
    ) + sum(t.numel for n, t in checkpoint.tensors.items() if n in outer)
    assert counted == plan.about["parameters"]
    costs = Costs.of(checkpoint)

    def miss(channels: int) -> float:
        """By how much of the unit the size with so many channels is above the target."""
        widths = [{**width, "ffn": channels}] * checkpoint.blocks
        if target.hard:  # a bound also holds with the biases that another type has
            return (costs.size(widths, kind) + costs.added[kind]) / whole - share
        size = costs.size(widths, "params")
        if kind == "keep-blocks":
            return 1 - (checkpoint.parameters - size) / costs.prunable - share
        return size / checkpoint.parameters - share

    found, steps = miss(width["ffn"]), lattice(checkpoint, plan.about["align"]).ffn
    reached = {"keep": "keep_reached", "keep-blocks": "keep_blocks_reached"}.get(kind)
    if reached is not None:
        assert plan.about[reached] == pytest.approx(share + found)
    at = steps.index(width["ffn"])
    if target.hard:
        assert found <= 0 and all(miss(wider) > 0 for wider in steps[at + 1 :])
    else:
        beside = steps[max(0, at - 1) : at + 2]
        assert all(abs(found) <= abs(miss(channels)) for channels in beside)
    # Half a point, or half of what one channel in every block is.
    channel = found - miss(width["ffn"] - 1)
    assert abs(found) <= max(CLOSE, channel if target.hard else channel / 2)


def test_a_plan_is_for_blocks_of_its_widths(llama, make_checkpoint, tmp_path):
    scored = Checkpoint(llama)
    plan = allocate(score(scored, "random"), scored, Target("keep", 0.7))
    plan.check(scored)
    wider = Checkpoint(make_checkpoint(tmp_path / "wider", intermediate_size=64))
    with pytest.raises(InputError, match=r"made for 48 units of ffn in block 0, .* has 64"):
        plan.check(wider)


def test_unreachable_target_names_the_smallest(llama):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match=r"smallest possible is (0\.\d+)") as caught:
        solve(Target("keep", 0.05), checkpoint, lattice(checkpoint))
    smallest = float(str(caught.value).split("smallest possible is ")[1].split()[0])
    least = {
        group: widths[0] for group, widths in lattice(checkpoint).of_block(checkpoint.units).items()
    }
    for near in (1e-4, -CLOSE + 1e-4):
        found = solve(Target("keep", smallest + near), checkpoint, lattice(checkpoint))
        assert found[0] == least
    with pytest.raises(InputError, match="cannot be reached"):
        solve(Target("keep", smallest - CLOSE - 1e-4), checkpoint, lattice(checkpoint))
    bound = int(smallest * checkpoint.parameters) - 1
    with pytest.raises(InputError, match=rf"target params {bound:,} cannot be reached"):
        solve(Target("params", bound), checkpoint, lattice(checkpoint))


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan")])
def test_keep_outside_its_range(llama, value):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        solve(Target("keep", value), Checkpoint(llama), lattice(Checkpoint(llama)))


def test_lattice_respects_container_tp_and_align(make_checkpoint, tmp_path):
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "m", intermediate_size=512))
    assert lattice(checkpoint).attention == [1, 2, 3, 4]
    assert lattice(checkpoint, container="llama").attention == [1, 2, 4]
    assert lattice(checkpoint, tp=2).attention == [2, 4]
    assert lattice(checkpoint, tp=2).ffn == [256, 512]
    assert lattice(checkpoint, align=100).ffn == [100, 200, 300, 400, 500, 512]
    with pytest.raises(InputError, match="must be positive"):
        lattice(checkpoint, align=0)


def test_biases_that_the_other_container_lacks_limit_the_heads(make_checkpoint, tmp_path):
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "m", attention_bias=True))
    assert lattice(checkpoint).attention == [1, 2, 4]


def test_protected_blocks_keep_everything(llama):
    checkpoint = Checkpoint(llama)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.8), protect=[0, -1])
    widths = plan.widths()
    assert widths[0] == widths[2] == checkpoint.units
    assert widths[1]["ffn"] < checkpoint.units["ffn"]
    with pytest.raises(InputError, match="block 7; the model has 3"):
        allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.8), protect=[7])


def test_best_units_stay_and_ties_go_to_the_lower_index():
    assert best(torch.tensor([1.0, 5.0, 3.0, 3.0, 0.0]), 2) == [1, 2]


def test_scores_and_plans_are_files(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    scores = score(checkpoint, "magnitude")
    scores.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert loaded.about == scores.about
    plan = allocate(loaded, checkpoint, Target("keep", 0.8))
    assert plan.blocks == allocate(scores, checkpoint, Target("keep", 0.8)).blocks
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json"])
def test_broken_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_text(content)
    with pytest.raises(InputError, match="not a plan"):
        Plan.load(tmp_path / "x")
    with pytest.raises(InputError, match="not a file of scores"):
        Scores.load(tmp_path / "x")


def test_plan_with_wrong_indices_is_refused(llama):
    checkpoint = Checkpoint(llama)
    good = [{"attention": [0], "ffn": [1, 2]}] * 3
    Plan(good).check(checkpoint)
    for bad in ([], [48], [2, 1], [1, 1], [-1]):
        with pytest.raises(InputError, match="block 2"):
            Plan([*good[:2], {"attention": [0], "ffn": bad}]).check(checkpoint)
    with pytest.raises(InputError, match="2 blocks"):
        Plan(good[:2]).check(checkpoint)
