"""Mixtures of experts: read in either form, streamed as transformers computes them, cut and written."""


import pytest
import torch
from experts import FUSED, fuse
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.plan import Plan
from compressor.writing.cuts import write

IDS = torch.arange(4, 16)[None]
KEPT = [0, 2, 3, 5]


def names_of(folder) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        return sorted(handle.keys())


@pytest.mark.parametrize("form", ["single", FUSED])
def test_both_forms_are_read_and_written_as_they_were(any_mixture, form, tmp_path):
    folder = fuse(any_mixture, tmp_path / "fused") if form == FUSED else any_mixture
    source = Checkpoint(folder)
    assert source.units == {"attention": 4, "ffn": 6}
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = model(IDS).logits
    (found,) = BlockStream(source).logits([IDS])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

    plan = Plan([{"attention": [*range(4)], "ffn": KEPT}] * source.blocks)
    write(source, plan, tmp_path / "cut")
    smaller, told = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not any(told.values())
    assert smaller.model.layers[0].mlp.experts.down_proj.shape[0] == len(KEPT)
    assert smaller.config.num_experts_per_tok == 2
    kept = names_of(tmp_path / "cut")
    assert {*kept} <= {*names_of(folder)}
    assert any("experts.3." in name for name in kept) is (form != FUSED)
    for layer, original in zip(smaller.model.layers, model.model.layers, strict=True):
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            whole = original.mlp.get_parameter(name)
            assert torch.equal(layer.mlp.get_parameter(name), whole[KEPT])
    for block, layer in enumerate(model.model.layers):
        with torch.no_grad(), only_units(layer, BlockGeometry.of(source, block), {"ffn": KEPT}):
            x = torch.randn(1, 9, source.hidden_size)
            torch.testing.assert_close(layer.mlp(x), smaller.model.layers[block].mlp(x))
