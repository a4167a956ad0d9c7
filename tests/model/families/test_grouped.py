"""Mixtures as DeepSeek makes them: routers that choose groups of experts first, latent attention."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from experts import GROUPED, LATENT, MIXTURES
from transformers import AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import in_channels, only_experts
from compressor.model.fewer_blocks import FewerBlocks
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.allocation import allocate
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.scoring.score import score
from compressor.writing.cuts import write

IDS = torch.arange(4, 28)[None]
BIAS = "mlp.gate.e_score_correction_bias"
# Two groups of three are chosen, so that two experts of each are the fewest that do for three.
LIMITED = {"n_routed_experts": 9, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3}
LIMITED |= {"num_hidden_layers": 3}
KEPT = [0, 2, 3, 4, 7, 8]


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3"])
def limited(request, make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limited") / "model"
    return make_checkpoint(folder, request.param, **MIXTURES[request.param] | LIMITED)


@pytest.fixture
def copied(random_family, tmp_path):
    return shutil.copytree(random_family("deepseek_v3"), tmp_path / "model")


def plan_of(source, kept) -> Plan:
    """These units of every block that has experts."""
    return Plan(
        [
            {"attention": [*range(units["attention"])], "ffn": kept if units["ffn"] else []}
            for units in source.block_units
        ]
    )


def test_attention_and_the_first_ffn_are_whole(limited):
    source = Checkpoint(limited)
    assert source.block_units == [
        {"attention": 0, "ffn": 0},
        {"attention": 0, "ffn": 9},
        {"attention": 0, "ffn": 9},
    ]


def test_every_group_keeps_as_many_experts(limited):
    source = Checkpoint(limited)
    assert lattice(source).ffn == [6, 9] and source.ffn_parts == 3
    scores = score(source, "magnitude")
    plan = allocate(scores, source, Target("keep-blocks", 0.8))
    for block, rated in zip(plan.blocks[1:], scores.blocks[1:], strict=True):
        groups = rated["ffn"].view(3, 3)
        lost = [3 * g + values.argmin().item() for g, values in enumerate(groups)]
        assert sorted({*range(9)} - {*block["ffn"]}) == lost
    with pytest.raises(InputError, match=r"1 experts of a group of block 1 and 3 of another"):
        plan_of(source, [0, 1, 2, 3, 4, 6]).check(source)
    with pytest.raises(InputError, match=r"sent to 3 experts .* keeps 3 in block 1; keep 6 at le"):
        plan_of(source, [0, 3, 6]).check(source)
    with pytest.raises(InputError, match=r"routed to 3 .*here 6, as many in each of 3 groups"):
        solve(Target("keep-blocks", 0.3), source, lattice(source))


@torch.no_grad()
def test_a_cut_computes_what_the_masked_source_does(limited, tmp_path):
    source = Checkpoint(limited)
    plan = plan_of(source, KEPT)
    write(source, plan, tmp_path / "out")
    small, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    assert small.config.n_routed_experts == 6 and small.config.n_group == 3
    whole = AutoModelForCausalLM.from_pretrained(limited)
    for block in (1, 2):
        layers = [model.model.layers[block] for model in (whole, small)]
        x = torch.randn(1, 40, source.hidden_size)
        with only_units(layers[0], BlockGeometry.of(source, block), {"ffn": KEPT}):
            torch.testing.assert_close(layers[0].mlp(x), layers[1].mlp(x))


@torch.no_grad()
def test_a_hidden_expert_is_never_chosen(limited):
    """Also where groups have different numbers left, as where one alone is hidden to measure it."""
    source = Checkpoint(limited)
    router = AutoModelForCausalLM.from_pretrained(limited).model.layers[1].mlp.gate
    layer = torch.nn.Module()
    layer.mlp = torch.nn.Module()
    layer.mlp.gate = router
    x = torch.randn(400, source.hidden_size)
    before = router(x)
    assert {*before[2].flatten().tolist()} == {*range(9)}
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    with only_experts(layer, source.family.experts, kept):
        _, weights, chosen = router(x)
    assert {*chosen.flatten().tolist()} == {*kept}
    same = (before[2] != 4).all(1)  # the others' tokens are sent where they were
    if source.family.experts.bias:  # a softmax shares what the lost one had
        torch.testing.assert_close(weights[same].sum(1), before[1][same].sum(1))
    assert all(torch.equal(a, b) for a, b in zip(router(x), before, strict=True))


@torch.no_grad()
def test_the_bias_is_added_in_float32(make_checkpoint, tmp_path):
    """In half precision it would choose other experts."""
    sizes = MIXTURES["deepseek_v3"] | {"num_hidden_layers": 2}
    folder = make_checkpoint(tmp_path / "model", "deepseek_v3", torch.bfloat16, **sizes)
    name = f"model.layers.1.{BIAS}"
    edit_tensors(folder, lambda t: t.update({name: 0.5 + torch.linspace(0, 1e-4, 6)}))
    source = Checkpoint(folder)
    (found,) = BlockStream(source).logits([IDS])
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(IDS).logits
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    write(source, plan_of(source, [0, 2, 3, 5]), tmp_path / "out")
    kept = Checkpoint(tmp_path / "out").read([name])[name]
    assert torch.equal(kept, source.read([name])[name][[0, 2, 3, 5]])
    assert kept.dtype == torch.float32


def test_blocks_that_foresee_are_left_out(copied, tmp_path):
    """They lie behind the last block."""

    def add(tensors) -> None:
        for name in ("enorm.weight", "mlp.experts.0.up_proj.weight", BIAS):
            tensors[f"model.layers.4.{name}"] = torch.ones(32)

    edit_tensors(copied, add)
    edit_config(copied, num_nextn_predict_layers=1)
    source = Checkpoint(copied)
    assert any("model.layers.4." in note and "2 more" in note for note in source.notes)
    assert not inspect(copied)["problems"] and inspect(copied)["blocks"][-1]["experts"] == 6
    write(source, plan_of(source, [0, 1, 4]), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0
    assert Checkpoint(tmp_path / "out").notes == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"n_group": 4, "topk_group": 1},
            r"its 6 experts \(n_routed_experts\) do not make 4 equal",
        ),
        ({"n_group": 2, "topk_group": 3}, r"chooses 3 groups \(topk_group\), and there are 2"),
        ({"n_group": 3, "num_experts_per_tok": 3}, r"group of experts has 2 .*asks for 3 of each"),
        ({"n_group": 6, "topk_group": 2}, r"group of experts has 1 .*asks for 2 of each"),
        ({"num_experts_per_tok": 7}, r"routed to 7 experts .* a block has 6"),
        ({"num_experts_per_tok": 0}, "does not say how many experts a token is routed to"),
        ({"first_k_dense_replace": 4}, r"none of its blocks has experts \(first_k_dense_replace"),
        ({"first_k_dense_replace": 2}, "lacks the tensor model.layers.1.mlp.gate_proj.weight"),
        ({"n_routed_experts": 5}, r"experts.5.\w+.weight, but its config counts 5 experts"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "its topk_method is 'noaux_tc'"),
    ],
)
def test_configs_of_other_routers_are_named(copied, settings, message):
    edit_config(copied, **settings)
    with pytest.raises(InputError, match=message):
        Checkpoint(copied)


def test_a_bias_that_is_missing_or_of_others_is_named(copied):
    name = f"model.layers.2.{BIAS}"
    edit_tensors(copied, lambda tensors: tensors.update({name: tensors[name][:5].clone()}))
    with pytest.raises(
        InputError, match=r"e_score_correction_bias in .* shape \[5\].*implies \[6\]"
    ):
        Checkpoint(copied)
    edit_tensors(copied, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=rf"lacks the tensor {name} \[6\]"):
        Checkpoint(copied)


def test_first_blocks_that_are_dropped_are_no_longer_counted(make_checkpoint, tmp_path):
    sizes = LATENT | GROUPED | {"first_k_dense_replace": 2, "num_hidden_layers": 4}
    source = Checkpoint(make_checkpoint(tmp_path / "model", "deepseek_v3", **sizes))
    assert FewerBlocks(source, [1, 3]).written_config["first_k_dense_replace"] == 1
    part = FewerBlocks(source, [2])
    assert part.written_config["first_k_dense_replace"] == 2
    (found,) = BlockStream(part).logits([IDS])
    write(part, Plan.whole(part), tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="none that has experts"):
        FewerBlocks(source, [2, 3])


def test_channels_leave_the_shared_expert_as_wide(copied, tmp_path):
    source = in_channels(Checkpoint(copied))
    assert lattice(source, align=4).ffn == [6 * n for n in (4, 8, 16, 32)]
    units = [expert * 32 + c for expert in range(6) for c in range(12)]
    with pytest.raises(InputError, match=r"12 channels .* do not divide the 32 of the shared one"):
        plan_of(source, units).check(source)
    write(source, plan_of(source, [u for u in range(6 * 32) if u % 4 == 1]), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["moe_intermediate_size"], config["n_shared_experts"]) == (8, 4)
    with pytest.raises(InputError, match=r"widths that divide the shared one's \(n_shared_experts"):
        solve(Target("keep-blocks", 0.1), source, lattice(source))
