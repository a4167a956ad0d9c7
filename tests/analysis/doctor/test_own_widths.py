"""Blocks of their own widths, as FLAP and OptiPFair's `layer_indices` leave them, and FLAP's biases."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from safetensors.torch import load_file
from spoiled import FFN, IDS, as_state_dict, logits, narrow_ffn, narrow_heads, silence

from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.model.loading import load
from compressor.model.tensors import SINGLE

BLOCKS = range(3)
HEADS = (6, 4, 5)  # of 8, in FLAP's model


def layer_indices(folder):
    edit_tensors(folder, lambda t: [narrow_ffn(t, block, FFN) for block in (0, 2)])
    edit_config(folder, intermediate_size=FFN)  # as it says of all


def heads_of_their_own(folder):
    edit_tensors(folder, lambda t: [narrow_heads(t, block, n) for block, n in ((0, 2), (2, 3))])


@pytest.mark.parametrize(
    ("spoil", "asked", "layout", "widths"),
    [
        (layer_indices, None, "nas", ("ffn", [FFN, 48, FFN])),
        (layer_indices, "per-layer", "per-layer", ("ffn", [FFN, 48, FFN])),
        (layer_indices, "padded", "padded", ("ffn", [48, 48, 48])),
        (heads_of_their_own, None, "per-layer", ("kv_heads", [2, 4, 3])),
    ],
)
def test_blocks_of_their_own_widths(folder, cure, right, spoil, asked, layout, widths):
    spoil(folder)
    result, out = cure(layout=asked)
    assert result["layout"] == layout and result["report"]["logits_difference"] < 1e-4
    assert torch.allclose(logits(out), right, atol=1e-5)
    found = inspect(out)
    assert found["problems"] == [] and found["layout"] == layout
    name, expected = widths
    assert [row[name] for row in found["blocks"]] == expected


def test_a_layout_that_cannot_hold_them(folder, cure):
    heads_of_their_own(folder)
    with pytest.raises(InputError, match=r"2 to 4 KV groups in a block.*per-layer"):
        cure(layout="nas")
    assert not folder.with_name("fixed").exists()


def flap(folder, make_checkpoint, ffn=(48, 20, 30), heads=HEADS, rotation=True):
    """A pickled state dict of a model without grouped queries, with what FLAP adds, and its old config;
    the logits of the model in memory.
    """
    shutil.rmtree(folder)
    make_checkpoint(folder, num_key_value_heads=8)
    edit_tensors(folder, silence_all_but(heads, ffn))
    model, _ = load(folder)
    torch.manual_seed(1)
    biases = {}
    for block, layer in enumerate(model.model.layers):
        for module in ("self_attn.o_proj", "mlp.down_proj"):
            bias = torch.nn.Parameter(0.1 * torch.randn(32))
            layer.get_submodule(module).bias = bias
            biases[f"model.layers.{block}.{module}.bias"] = bias.data
    with torch.no_grad():
        expected = model(IDS).logits

    def change(tensors):
        for block in BLOCKS:
            narrow_ffn(tensors, block, ffn[block])
            narrow_heads(tensors, block, heads[block], 4)
        tensors.update(biases)

    edit_tensors(folder, change)
    speeds = 10000.0 ** -(torch.arange(0, 4, 2) / 4)
    turned = {f"model.layers.{b}.self_attn.rotary_emb.inv_freq": speeds for b in BLOCKS}
    as_state_dict(folder, **(turned if rotation else {}))
    edit_config(folder, head_dim=..., rope_parameters=..., rope_theta=..., attention_bias=...)
    return expected


def silence_all_but(heads, ffn):
    def change(tensors):
        for block in BLOCKS:
            tensors[f"model.layers.{block}.mlp.down_proj.weight"][:, ffn[block] :] = 0
            tensors[f"model.layers.{block}.self_attn.o_proj.weight"][:, 4 * heads[block] :] = 0

    return change


def test_flap(folder, cure, make_checkpoint):
    """Heads of their own and biases: no layout of unequal blocks has both, so zeros fill them up."""
    expected = flap(folder, make_checkpoint)
    result, out = cure()
    assert [each["fault"] for each in result["found"]] == [
        "pickled weights",
        "FFN width",
        "heads",
        "biases",
    ]
    assert torch.allclose(logits(out), expected, atol=1e-5)
    assert result["layout"] == "padded" and result["report"]["logits_difference"] < 1e-4
    config = json.loads((out / "config.json").read_text())
    assert config["attention_bias"] is config["mlp_bias"] is True
    assert config["num_attention_heads"] == 8  # 6 do not divide the hidden size
    tensors = load_file(out / SINGLE)
    assert not tensors["model.layers.0.self_attn.q_proj.bias"].any()
    assert not any(name.endswith("inv_freq") for name in tensors)


def test_flap_where_attention_is_whole(folder, cure, make_checkpoint):
    expected = flap(folder, make_checkpoint, heads=(8, 8, 8))
    result, out = cure()
    assert result["layout"] == "nas" and result["model_type"] == "llama"
    assert torch.allclose(logits(out), expected, atol=1e-5)
    assert [row["ffn"] for row in inspect(out)["blocks"]] == [48, 20, 30]


def test_flap_with_equal_blocks(folder, cure, make_checkpoint):
    """4 heads of 4, by the stored rotation; 8 of 2 without it."""
    sizes = {"ffn": (20, 20, 20), "heads": (4, 4, 4)}
    expected = flap(folder, make_checkpoint, **sizes)
    result, out = cure()
    assert result["layout"] == "uniform" and torch.allclose(logits(out), expected, atol=1e-5)
    flap(folder, make_checkpoint, **sizes, rotation=False)
    shutil.rmtree(out)
    with pytest.raises(InputError, match=r"can be 8 heads of 2 or 4 heads of 4; say .*--head-dim"):
        cure()
    assert cure(head_dim=4)[0]["report"]["logits_difference"] < 1e-4
    assert torch.allclose(logits(out), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [(4, 4, 4), (2, 4, 4)])
def test_another_family(folder, cure, make_checkpoint, groups):
    """With what its class needs beside the widths of its blocks."""
    shutil.rmtree(folder)
    make_checkpoint(folder, "gemma2", tie_word_embeddings=True)
    edit_tensors(folder, silence)
    expected = logits(folder)

    def narrow(tensors):
        for block in BLOCKS:
            narrow_heads(tensors, block, groups[block])
            narrow_ffn(tensors, block, FFN + block)

    edit_tensors(folder, narrow)
    result, out = cure()
    assert result["report"]["logits_difference"] < 1e-4 and result["layout"] == "per-layer"
    assert torch.allclose(logits(out), expected, atol=1e-5)


def test_what_is_written_has_no_fault(folder, cure, tmp_path):
    """Nor is a layout of unequal blocks another after a mend."""
    heads_of_their_own(folder)
    _, out = cure()
    shutil.rmtree(folder)
    out.rename(folder)
    assert cure()[0]["out"] is None
    edit_config(folder, dtype="float16", torch_dtype="float16")
    result, out = cure()
    assert result["layout"] == "per-layer"
    assert [each["fault"] for each in result["found"]] == ["dtype"]


def test_a_norm_says_what_a_head_is(folder, cure, make_checkpoint):
    """By the config these would be 4 heads of 4 or 8 of 2."""
    shutil.rmtree(folder)
    make_checkpoint(folder, "qwen3")
    edit_tensors(folder, silence)
    expected = logits(folder)
    edit_tensors(folder, lambda t: [narrow_heads(t, block, 2) for block in BLOCKS])
    _, out = cure()
    assert torch.allclose(logits(out), expected, atol=1e-5)


def test_queries_that_went_alone(folder, cure):
    """As many of every KV head, or the tool's model was another: that cannot be seen, and is said."""
    edit_tensors(folder, lambda t: [narrow_heads(t, block, 4, 4) for block in BLOCKS])
    result, out = cure()
    assert "Every KV head serves 1 query heads, and config.json said 2" in result["notes"][0]
    config = json.loads((out / "config.json").read_text())
    assert config["num_attention_heads"] == config["num_key_value_heads"] == 4
