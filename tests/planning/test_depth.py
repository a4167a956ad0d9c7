"""Plans of sources that have lost blocks: shares are of the whole."""

import pytest

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import FewerBlocks
from compressor.planning.allocation import allocate, protected
from compressor.planning.costs import CLOSE, Costs
from compressor.planning.lattice import Wanted
from compressor.planning.plan import Plan
from compressor.scoring.score import score


@pytest.fixture(scope="module")
def part(tmp_path_factory, make_checkpoint):
    folder = make_checkpoint(tmp_path_factory.mktemp("six") / "model", num_hidden_layers=6)
    return FewerBlocks(Checkpoint(folder), [2, 4])


@pytest.mark.parametrize("budget", ["params", "flops"])
def test_sizes_are_of_what_is_left_and_shares_of_the_whole(part, budget):
    costs, whole = Costs.of(part, budget), Costs.of(part.whole, budget)
    assert costs.total == whole.total and costs.prunable == whole.prunable
    units = part.block_units
    assert costs.size(units, "params") == part.parameters
    assert costs.size(units, "bytes") == part.bytes
    if budget == "flops":
        one = whole.size(part.whole.block_units, "flops") - whole.rest["flops"]
        assert costs.size(units, "flops") == whole.total["flops"] - one * 2 // 6


@pytest.mark.parametrize("how", ["uniform", "global"])
@pytest.mark.parametrize("target", [Target("keep-blocks", 0.5), Target("params", 30_000)])
def test_a_target_is_reached_by_depth_and_width(part, target, how):
    scores = score(part, "magnitude")
    plan = allocate(scores, part, target, Wanted(1, layout="per-layer"), (), how)
    assert plan.dropped == [2, 4] and len(plan.blocks) == 4
    if target.hard:
        assert 0.95 * target.value < plan.about["parameters"] <= target.value
    else:
        assert plan.about["keep_blocks_reached"] == pytest.approx(0.5, abs=CLOSE)
    plan.check(part)
    with pytest.raises(InputError, match=r"drops the blocks \[2, 4\], and of .* \[\]"):
        plan.check(part.whole)


def test_what_is_protected_is_said_in_the_sources_numbers(part):
    assert protected([3, -1, 0], part) == [0, 2, 3]
    with pytest.raises(InputError, match="block 4, which is dropped"):
        protected([4], part)
    with pytest.raises(InputError, match="block 6; the model has 6 blocks"):
        protected([6], part)


def test_a_plan_is_loaded_from_a_results_record(part, tmp_path):
    plan = Plan.whole(part)
    plan.about = {"dropped": [2, 4], "depth": {"folded": [{"into": 1}]}}
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "compression.json").write_text('{"format": 1, "plan": ' + text + "}")
    for name in ("plan.json", "compression.json"):
        loaded = Plan.load(tmp_path / name)
        assert loaded == plan and loaded.folds and loaded.dropped == [2, 4]
