"""Channels inside of experts: each expert keeps its own, as many as the others."""

import json

import pytest
import torch
from experts import FUSED, MIXTURES, fuse
from transformers import AutoModelForCausalLM

from compressor.config.target import Target
from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import in_channels
from compressor.model.families.experts import CHANNELS_OF_EXPERTS
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.allocation import allocate
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.scoring.score import score
from compressor.scoring.scores import best
from compressor.writing.cuts import write, writer_of

KEPT = 8


def plan_of(source) -> Plan:
    """Other channels of every expert of every block."""
    generator = torch.Generator().manual_seed(0)
    units = source.units["ffn"]
    count = source.config[source.family.ffn_width_key]
    return Plan(
        [
            {
                "attention": [*range(there["attention"])],
                "ffn": best(torch.rand(units, generator=generator), KEPT * count, count)
                if there["ffn"]
                else [],
            }
            for there in source.block_units
        ]
    )


def test_a_stack_is_a_matrix_and_back():
    torch.manual_seed(0)
    gate_up, down = torch.randn(3, 2 * 5, 4), torch.randn(3, 4, 5)
    for part, stack in zip(CHANNELS_OF_EXPERTS, (gate_up, down), strict=True):
        assert torch.equal(part.unmatrix(part.matrix(stack), stack), stack)
    inward, outward = (
        p.matrix(s) for p, s in zip(CHANNELS_OF_EXPERTS, (gate_up, down), strict=True)
    )
    unit = 2 * 5 + 3  # channel 3 of expert 2
    assert torch.equal(inward[2 * unit : 2 * unit + 2], gate_up[2, [3, 5 + 3]])
    assert torch.equal(outward[unit], down[2, :, 3])


@pytest.mark.parametrize("form", ["single", FUSED])
@pytest.mark.parametrize("family", sorted(MIXTURES))
def test_the_cut_is_the_source_without_these_channels(random_family, family, form, tmp_path):
    folder = random_family(family)
    folder = fuse(folder, tmp_path / "fused") if form == FUSED else folder
    source = in_channels(Checkpoint(folder))
    width = source.config[source.family.experts.width_key]
    assert source.units["ffn"] == 6 * width
    plan = plan_of(source)
    write(source, plan, tmp_path / "cut")
    config = json.loads((tmp_path / "cut/config.json").read_text())
    assert config[source.family.experts.width_key] == KEPT
    small, told = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not any(told.values())
    assert small.model.layers[-1].mlp.experts.down_proj.shape == (6, 32, KEPT)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    for block, units in enumerate(source.block_units):
        if not units["ffn"]:
            continue
        layer = whole.model.layers[block]
        geometry, kept = BlockGeometry.of(source, block), {"ffn": plan.blocks[block]["ffn"]}
        with torch.no_grad(), only_units(layer, geometry, kept):
            x = torch.randn(1, 9, source.hidden_size)
            torch.testing.assert_close(layer.mlp(x), small.model.layers[block].mlp(x))


def test_every_expert_keeps_its_best(mixture):
    source = in_channels(Checkpoint(mixture))
    scores = score(source, "magnitude")
    plan = allocate(scores, source, Target("keep-blocks", 0.6))
    assert plan.about["align"] == 4  # rows of a stack in float32
    weights = source.read_block(1)
    small = cut_block(weights, source, plan.blocks[1])["mlp.experts.down_proj"]
    for expert, down in enumerate(weights["mlp.experts.down_proj"]):
        of_expert = scores.blocks[1]["ffn"].view(6, 16)[expert]
        assert torch.equal(small[expert], down[:, best(of_expert, 8)])


def test_widths_and_plans_that_there_are_not(mixture, llama):
    source = in_channels(Checkpoint(mixture))
    assert lattice(source).ffn == [24, 48, 72, 96] and lattice(source, align=8).ffn == [48, 96]
    with pytest.raises(InputError, match="in steps of 20 do not exist: theirs is 16"):
        lattice(source, align=20)
    uneven = plan_of(source)
    uneven.blocks[2]["ffn"].remove(uneven.blocks[2]["ffn"][0])
    with pytest.raises(InputError, match="7 channels of an expert of block 2 and 8 of another"):
        uneven.check(source)
    with pytest.raises(InputError, match="nothing to pad"):
        writer_of(source, plan_of(source), "padded")
    with pytest.raises(InputError, match="of the type llama, which has none"):
        in_channels(Checkpoint(llama))
