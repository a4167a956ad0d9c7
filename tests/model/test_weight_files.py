"""Which files hold the weights: those that stock loading reads, or a refusal that names them."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from jobs import compress, said, stage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import INDEX, SINGLE


def index_of(folder, **files) -> None:
    """An index that places the single file's tensors in these files, by turns."""
    names = sorted(load_file(folder / SINGLE))
    placed = {name: list(files.values())[i % len(files)] for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def second_save(folder) -> None:
    """An older, sharded save of other weights, as it is left when a model is saved anew."""
    older = {name: tensor + 1 for name, tensor in load_file(folder / SINGLE).items()}
    save_file(older, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index_of(folder, one="model-00001-of-00001.safetensors")


def adapter(folder) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")


def adapter_alone(folder) -> None:
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")


def no_model(folder) -> None:
    adapter(folder)
    (folder / "config.json").unlink()


def distributed_save(folder) -> None:
    shutil.copy(folder / SINGLE, folder / "shard-00000-model-00001-of-00001.safetensors")


def another_name(folder) -> None:
    (folder / SINGLE).rename(folder / "weights.safetensors")
    edit_config(folder, transformers_weights="weights.safetensors")


def variant_alone(folder) -> None:
    (folder / SINGLE).rename(folder / "model.fp16.safetensors")


def index_of_a_variant(folder) -> None:
    (folder / SINGLE).rename(folder / "model.fp16-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.fp16.json").write_text("{}")


def half_an_index(folder) -> None:
    index_of(folder, one=SINGLE, other="model-00002-of-00002.safetensors")


AMBIGUOUS = {
    second_save: rf"two sets of weights, {SINGLE} and those of {INDEX} \(model-00001-of-.*remove",
    half_an_index: r"two sets of weights, .*model-00002-of-00002\.safetensors",
    adapter: r"adapter beside its weights \(adapter_config\.json, adapter_model\.safet.*Merge it",
    adapter_alone: r"an adapter beside its weights \(adapter_model\.safetensors\)",
    no_model: r"holds an adapter \(.*and no model; merge it",
    distributed_save: r"a distributed save \(shard-00000-model.*Remove it",
    another_name: r"names its weights 'weights\.safetensors' \(transformers_weights\)",
    variant_alone: r"neither .* but model\.fp16\.safetensors; .*name it model\.safetensors",
    index_of_a_variant: r"neither .* but .*model\.safetensors\.index\.fp16\.json",
}


@pytest.mark.parametrize(("change", "message"), AMBIGUOUS.items(), ids=lambda x: str(x)[:20])
def test_weights_that_loaders_disagree_about(copy, change, message):
    change(copy)
    with pytest.raises(InputError, match=message):
        Checkpoint(copy)


def commands(folder, out, text) -> dict:
    """Every command that reads a model, and its exit code."""
    short = ("--calibration", text, "--length", 32)
    return {
        "compress": lambda: compress(folder, out / "dest", "--keep", 0.7, *short),
        "score": lambda: stage("score", folder, "--out", out / "s.safetensors", *short),
        "eval": lambda: stage("eval", folder, "--text", text),
        "verify": lambda: stage("verify", folder),
        "recover": lambda: stage("recover", folder, out / "dest", *short),
        "estimate": lambda: stage("estimate", folder),
        "generate": lambda: stage("generate", folder, out / "own.jsonl"),
    }


@pytest.mark.parametrize("name", commands(None, None, None))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (second_save, "two sets of weights"),
        (adapter, "adapter beside its weights"),
        (
            lambda folder: edit_tensors(folder, lambda t: t.update(value_head=torch.zeros(1, 32))),
            "holds value_head [1, 32], which LlamaForCausalLM does not have",
        ),
        (
            lambda folder: edit_config(folder, vocab_size=119),
            "has the shape [120, 32], but the config implies [119, 32]",
        ),
        (
            lambda folder: edit_config(folder, architectures=["LlamaForSequenceClassification"]),
            "is of a LlamaForSequenceClassification",
        ),
        (lambda folder: edit_config(folder, hidden_act=3), "refuses the config of"),
    ],
    ids=["second_save", "adapter", "unknown_tensor", "rows", "task", "config"],
)
def test_every_command_refuses_alike(copy, tmp_path, text_file, capsys, name, change, message):
    change(copy)
    assert commands(copy, tmp_path, text_file)[name]() == (5 if name == "verify" else 2)
    assert message in said(capsys)
    assert {p.name for p in tmp_path.iterdir()} == {"copy"}


def stale_shards(folder) -> None:
    for name in ("model-00001-of-00009.safetensors", "model-00007-of-00009.safetensors"):
        save_file({"model.norm.weight": torch.zeros(32)}, folder / name)


def pickles(folder) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    (folder / "pytorch_model.bin.index.json").write_text("{}")


def variant_beside(folder) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "model.fp16.safetensors")


def other_formats(folder) -> None:
    save_file({"norm.weight": torch.zeros(32)}, folder / "consolidated.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize("sharding", ["copy", "sharded"])
@pytest.mark.parametrize("change", [stale_shards, pickles, variant_beside, other_formats])
def test_what_stock_loading_leaves_alone_is_left_alone(request, sharding, change):
    folder = request.getfixturevalue(sharding)
    change(folder)
    read = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    checkpoint = Checkpoint(folder)
    for name, tensor in checkpoint.read(checkpoint.tensors).items():
        assert torch.equal(tensor, read[name])


def test_an_index_of_the_single_file_says_the_same(copy):
    index_of(copy, one=SINGLE)
    edit_config(copy, transformers_weights=SINGLE)
    checkpoint = Checkpoint(copy)
    assert {entry.file.name for entry in checkpoint.tensors.values()} == {SINGLE}
    assert "transformers_weights" not in checkpoint.written_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("metadata"), r'has no metadata.*add "metadata": \{\}'),
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index["weight_map"].update({"a": 3}), "has no weight_map of names"),
        (
            lambda index: index["weight_map"].pop("model.norm.weight"),
            r"holds model\.norm\.weight, which .*index\.json does not name",
        ),
    ],
)
def test_a_broken_index(sharded, change, message):
    index = json.loads((sharded / INDEX).read_text())
    change(index)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        Checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded):
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: tensor + 1}, last, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{name} is in {first.name} and in {last.name}"):
        Checkpoint(sharded)
