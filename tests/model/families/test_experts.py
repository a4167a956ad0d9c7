"""Mixtures of experts: read in either form, streamed as transformers computes them, cut and written."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from experts import FUSED, MIXTURES, fuse
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from compressor.analysis.doctor.fault import Patient
from compressor.analysis.doctor.tensors import open_weights
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.loaded_model import LoadedModel
from compressor.model.stream import BlockStream
from compressor.model.tensors import stored
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.writing.cuts import write, writer_of

IDS = torch.arange(4, 16)[None]
KEPT = [0, 2, 3, 5]


def names_of(folder) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        return sorted(handle.keys())


@pytest.mark.parametrize("form", ["single", FUSED])
def test_both_forms_are_read_and_written_as_they_were(any_mixture, form, tmp_path):
    folder = fuse(any_mixture, tmp_path / "fused") if form == FUSED else any_mixture
    source = Checkpoint(folder)
    assert source.units["ffn"] == 6
    heads = [[*range(units["attention"])] for units in source.block_units]
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = model(IDS).logits
    (found,) = BlockStream(source).logits([IDS])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

    having = [block for block, units in enumerate(source.block_units) if units["ffn"]]
    plan = Plan(
        [{"attention": whole, "ffn": KEPT if b in having else []} for b, whole in enumerate(heads)]
    )
    write(source, plan, tmp_path / "cut")
    smaller, told = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not any(told.values())
    assert smaller.model.layers[-1].mlp.experts.down_proj.shape[0] == len(KEPT)
    assert smaller.config.num_experts_per_tok == 2
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert all(config[name] == len(KEPT) for name in source.family.experts.counted)
    kept = names_of(tmp_path / "cut")
    assert {*kept} <= {*names_of(folder)}
    assert any("experts.3." in name for name in kept) is (form != FUSED)
    for block in having:
        small, whole = (layers.model.layers[block].state_dict() for layers in (smaller, model))
        for part in source.families[block].ffn:
            assert torch.equal(small[part.tensor], whole[part.tensor][KEPT])
        layer = model.model.layers[block]
        with torch.no_grad(), only_units(layer, BlockGeometry.of(source, block), {"ffn": KEPT}):
            x = torch.randn(1, 9, source.hidden_size)
            torch.testing.assert_close(layer.mlp(x), smaller.model.layers[block].mlp(x))


def test_a_model_in_memory_is_written_with_single_experts(mixture, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(mixture)
    source = LoadedModel(model)
    write(source, Plan.whole(source), tmp_path / "out")
    assert names_of(tmp_path / "out") == names_of(mixture)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_experts_in_several_shards_are_read(make_checkpoint, mixture, tmp_path):
    folder = make_checkpoint(
        tmp_path / "model", "qwen3_moe", **MIXTURES["qwen3_moe"], max_shard_size="20KB"
    )
    source, whole = Checkpoint(folder), Checkpoint(mixture)
    assert len({entry.file for entry in stored(source.tensors.values())}) > 3
    assert source.bytes == whole.bytes and source.parameters == whole.parameters
    for block in range(source.blocks):
        ours, theirs = source.read_block(block), whole.read_block(block)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


EXPERT = "model.layers.1.mlp.experts.3."


def without(*names):
    def spoil(tensors) -> None:
        for name in names:
            del tensors[name]

    return spoil


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def one_more(tensors) -> None:
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{{}}.{part}.weight"
        tensors[name.format(6)] = tensors[name.format(0)].clone()


def stacked_too(tensors) -> None:
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(6, 32, 16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without(EXPERT + "up_proj.weight"),
            rf"lacks the tensor {EXPERT}up_proj.weight: .* counts 6",
        ),
        (
            without(EXPERT + "gate_proj.weight", EXPERT + "up_proj.weight"),
            r"experts.3.gate_proj.weight and 1 more like it",
        ),
        (
            one_more,
            r"experts.6.\w+.weight, but its config counts 6 experts a block \(num_experts\)",
        ),
        (stacked_too, "holds .*experts.down_proj, and single experts of it"),
        (
            changed("model.layers.1.mlp.gate.weight", lambda router: router[:5].clone()),
            r"mlp.gate.weight in .* has the shape \[5, 32\], but the config implies \[6, 32\]",
        ),
        (
            changed(EXPERT + "down_proj.weight", lambda down: down[:, :8].clone()),
            r"experts.3.down_proj.weight in .* is \[32, 8\]",
        ),
        (
            changed(EXPERT + "gate_proj.weight", lambda gate: gate[:8].clone()),
            r"experts.3.gate_proj.weight in .* has other rows than .*experts.0",
        ),
    ],
)
def test_experts_that_do_not_fit_are_named(mixture, tmp_path, spoil, message):
    folder = shutil.copytree(mixture, tmp_path / "model")
    edit_tensors(folder, spoil)
    with pytest.raises(InputError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_experts_per_tok": 7},
            r"routed to 7 experts \(num_experts_per_tok\), and a block has 6",
        ),
        ({"mlp_only_layers": [0, 1, 2]}, r"none of its blocks has experts \(mlp_only_layers"),
        ({"decoder_sparse_step": 4}, "none of its blocks has experts"),
        ({"mlp_only_layers": [1]}, "lacks the tensor model.layers.1.mlp.gate_proj.weight"),
    ],
)
def test_configs_of_other_blocks_are_refused(mixture, tmp_path, settings, message):
    folder = shutil.copytree(mixture, tmp_path / "model")
    edit_config(folder, **settings)
    with pytest.raises(InputError, match=message):
        Checkpoint(folder)


def test_no_fewer_experts_than_a_token_is_sent_to(mixture):
    source = Checkpoint(mixture)
    assert lattice(source).ffn == [2, 3, 4, 5, 6] and lattice(source).attention == [4]
    assert lattice(source, align=2).ffn == [2, 4, 6]
    with pytest.raises(InputError, match=r"routed to 2 experts .* so no fewer can stay"):
        solve(Target("keep-blocks", 0.2), source, lattice(source))
    plan = Plan([{"attention": [*range(4)], "ffn": [1]}] * source.blocks)
    with pytest.raises(InputError, match=r"sent to 2 experts .* keeps 1 in block 0"):
        plan.check(source)


def test_layouts_of_unequal_experts_are_refused(mixture):
    source = Checkpoint(mixture)
    plan = Plan([{"attention": [*range(4)], "ffn": [0, 1, 2 + b]} for b in range(source.blocks)])
    with pytest.raises(InputError, match="An expert of zeros would be chosen"):
        writer_of(source, plan, "padded")


def test_the_doctor_says_that_it_mends_none(mixture):
    with pytest.raises(
        InputError, match=r"a mixture of experts \(qwen3_moe\), which is not mended"
    ):
        open_weights(Patient(mixture, json.loads((mixture / "config.json").read_text())))
