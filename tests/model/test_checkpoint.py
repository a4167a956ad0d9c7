"""Reading, and every input that must be refused with a sentence."""

import json

import pytest
import torch
from edits import edit_config, edit_tensors
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import INDEX, SINGLE
from compressor.planning.plan import Plan
from compressor.writing.cuts import write


def test_a_config_that_is_no_object(copy):
    (copy / "config.json").write_text("[]")
    with pytest.raises(InputError, match="is no JSON object but"):
        Checkpoint(copy)


def test_sizes_are_read_from_headers(llama):
    checkpoint = Checkpoint(llama)
    tensors = load_file(llama / SINGLE)
    assert checkpoint.parameters == sum(t.numel() for t in tensors.values())
    assert checkpoint.bytes == sum(t.nbytes for t in tensors.values())
    assert checkpoint.units == {"attention": 4, "ffn": 48}
    assert (checkpoint.blocks, checkpoint.head_dim, checkpoint.tied) == (3, 4, False)
    for name, tensor in checkpoint.read(tensors).items():
        assert torch.equal(tensor, tensors[name])


def test_shards_hold_the_same_as_one_file(llama, sharded):
    one, many = Checkpoint(llama), Checkpoint(sharded)
    for name, tensor in many.read(many.tensors).items():
        assert torch.equal(tensor, one.read([name])[name])


def test_fingerprint_sees_a_changed_weight(llama, copy):
    assert Checkpoint(copy).fingerprint == Checkpoint(llama).fingerprint
    edit_tensors(copy, lambda t: t["model.norm.weight"].add_(1))
    assert Checkpoint(copy).fingerprint != Checkpoint(llama).fingerprint


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        Checkpoint(tmp_path / "nowhere")


def test_no_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        Checkpoint(copy)


def test_config_that_is_not_json(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("t5", "'t5' is not supported; supported are "),
        (None, "None is not supported; supported are "),
        ("phi", r"the nearest is 'phi3'; supported are .*; see docs/families\.md"),
        ("gemma3", "of the type gemma3 a Gemma3ForConditionalGeneration is read"),
        ("paligemma", "supported are .*, and of models of texts and images gemma3, llava"),
    ],
)
def test_unknown_model_type(copy, model_type, said):
    edit_config(copy, model_type=model_type)
    with pytest.raises(InputError, match=said):
        Checkpoint(copy)


def test_pickled_weights_only(copy):
    (copy / SINGLE).rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights only"):
        Checkpoint(copy)


def test_no_weights_at_all(copy):
    (copy / SINGLE).unlink()
    with pytest.raises(InputError, match="neither"):
        Checkpoint(copy)


def test_quantised_by_config(copy):
    edit_config(copy, quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="quantised"):
        Checkpoint(copy)


def test_quantised_by_dtype(copy):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(copy, lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(InputError, match=f"{name} .* dtype I8"):
        Checkpoint(copy)


def test_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        Checkpoint(sharded)


@pytest.mark.parametrize("kept", [0, 4, 100, -10])
def test_truncated_file(copy, kept):
    data = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(data[:kept])
    with pytest.raises(InputError, match="truncated"):
        Checkpoint(copy)


def test_file_that_is_not_safetensors(copy):
    (copy / SINGLE).write_bytes((20).to_bytes(8, "little") + b"x" * 100)
    with pytest.raises(InputError, match="not a safetensors file"):
        Checkpoint(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_index_that_leaves_the_folder(sharded, name):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside the folder"):
        Checkpoint(sharded)


def test_index_that_places_a_tensor_wrongly(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.unknown.weight"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"places model\.unknown\.weight"):
        Checkpoint(sharded)


def test_unexpected_shape(copy):
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_tensors(copy, lambda t: t.update({name: t[name][:-1].clone()}))
    with pytest.raises(InputError, match=rf"{name} .*\[15, 32\].*implies \[16, 32\]"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_missing_tensor(copy, name):
    edit_tensors(copy, lambda t: t.pop(name))
    with pytest.raises(InputError, match=f"lacks the tensor {name}"):
        Checkpoint(copy)


def test_stored_rotary_tables_are_left_out(copy):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    whole = Checkpoint(copy).parameters
    edit_tensors(copy, lambda t: t.update({name: torch.ones(2)}))
    assert name not in Checkpoint(copy).tensors
    assert Checkpoint(copy).parameters == whole


def test_a_tied_head_that_is_stored_too_counts_once(copy):
    edit_config(copy, tie_word_embeddings=True)
    assert not Checkpoint(copy).tied  # another head than the embedding: transformers unties it
    embedding = "model.embed_tokens.weight"
    edit_tensors(copy, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
    assert Checkpoint(copy).tied


def test_a_head_of_its_own_in_a_tied_config_is_used_and_said(copy, tmp_path):
    """transformers 5 uses it, older versions and other loaders do not: the result is untied for all."""
    edit_config(copy, tie_word_embeddings=True)
    checkpoint = Checkpoint(copy)
    assert not checkpoint.tied and not checkpoint.ties
    (note,) = checkpoint.notes
    assert "lm_head.weight" in note and "tie_word_embeddings false" in note
    read = AutoModelForCausalLM.from_pretrained(copy)
    assert torch.equal(checkpoint.read(["lm_head.weight"])["lm_head.weight"], read.lm_head.weight)


def test_a_head_that_stands_for_the_tied_embedding(copy):
    edit_config(copy, tie_word_embeddings=True)
    edit_tensors(copy, lambda t: t.pop("model.embed_tokens.weight"))
    checkpoint = Checkpoint(copy)
    assert checkpoint.tied and checkpoint.notes == []
    read = AutoModelForCausalLM.from_pretrained(copy)
    name = "model.embed_tokens.weight"
    assert torch.equal(checkpoint.read([name])[name], read.model.embed_tokens.weight)


def test_a_second_copy_of_the_head_in_another_dtype(copy):
    edit_config(copy, tie_word_embeddings=True)
    embedding = "model.embed_tokens.weight"

    def change(tensors):
        tensors[embedding] = tensors[embedding].bfloat16().float()
        tensors["lm_head.weight"] = tensors[embedding].bfloat16()

    edit_tensors(copy, change)
    assert Checkpoint(copy).tied


NORMS, DOWN = "norm", "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("stored", "wide", "said", "expected"),
    [
        (torch.bfloat16, NORMS, "bfloat16", torch.bfloat16),
        (torch.bfloat16, DOWN, "bfloat16", torch.bfloat16),
        (torch.bfloat16, DOWN, ..., torch.bfloat16),
        (torch.bfloat16, NORMS, "float32", torch.float32),
        (torch.bfloat16, DOWN, "float16", torch.bfloat16),
        (torch.bfloat16, None, "float32", torch.bfloat16),
        (torch.float16, "layers.1", ..., torch.float16),
        (torch.float16, "model", ..., torch.float32),
    ],
)
def test_the_dtype_of_a_mixed_file(copy, tmp_path, stored, wide, said, expected):
    """`wide`: what the names of those tensors hold that are float32."""

    def change(tensors):
        for name, tensor in tensors.items():
            kept = wide is not None and wide in name
            tensors[name] = tensor if kept else tensor.to(stored)

    edit_tensors(copy, change)
    edit_config(copy, dtype=said, torch_dtype=said)
    checkpoint = Checkpoint(copy)
    assert checkpoint.dtype == expected
    units = {"attention": [0, 1, 2, 3], "ffn": [*range(40)]}
    write(checkpoint, Plan([units] * 3), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(expected).removeprefix("torch.")
    before, after = load_file(copy / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}


def test_blocks_that_the_config_does_not_count(copy):
    edit_config(copy, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"holds model\.layers\.2\..* its config counts 2 blocks"):
        Checkpoint(copy)
