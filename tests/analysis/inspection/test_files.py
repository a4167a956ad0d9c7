"""Folders that hold weights twice: which files each loader takes, and that none is said to load them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.analysis.inspection.files import ambiguity, taken
from compressor.model.tensors import INDEX, SINGLE

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.fixture
def other(copy):
    """The same tensors, moved a little."""
    return {name: tensor + 0.1 for name, tensor in load_file(copy / SINGLE).items()}


def shard(folder, tensors) -> None:
    halves = dict(zip(SHARDS, (sorted(tensors)[:9], sorted(tensors)[9:]), strict=True))
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
    named = {name: file for file, names in halves.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))


def put(name):
    return lambda folder, tensors: save_file(tensors, folder / name, {"format": "pt"})


@pytest.mark.parametrize(
    ("add", "by_transformers", "by_vllm", "by_llama_cpp"),
    [
        (shard, [SINGLE], SHARDS, SHARDS),
        (put("model.fp16.safetensors"), [SINGLE], *[["model.fp16.safetensors", SINGLE]] * 2),
        (put("old.safetensors"), [SINGLE], [SINGLE, "old.safetensors"], [SINGLE]),
        (
            put("adapter_model.safetensors"),
            [SINGLE],
            ["adapter_model.safetensors", SINGLE],
            [SINGLE],
        ),
        (put("consolidated.safetensors"), [SINGLE], ["consolidated.safetensors"], [SINGLE]),
    ],
)
def test_weights_that_are_there_twice(copy, other, add, by_transformers, by_vllm, by_llama_cpp):
    before = AutoModelForCausalLM.from_pretrained(copy).state_dict()
    add(copy, other)
    expected = {"transformers": by_transformers, "vLLM": by_vllm, "llama.cpp": by_llama_cpp}
    assert taken(copy, {}) == expected
    after = AutoModelForCausalLM.from_pretrained(copy).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    result = inspect(copy)
    assert result["problems"][0].startswith("Loaders take different files: transformers takes")
    for row in result["loads"]:
        if "kernels" not in row["target"]:
            assert row["loads"] is False and "Take away" in row["because"], row


def test_what_is_not_taken_does_not_matter(copy, other):
    torch.save(other, copy / "pytorch_model.bin")
    torch.save({}, copy / "optimizer.pt")
    assert ambiguity(copy, {}) is None and inspect(copy)["problems"] == []
    shard(copy, other)
    (copy / SINGLE).unlink()
    put("stale.safetensors")(copy, other)
    assert taken(copy, {}) == dict.fromkeys(("transformers", "vLLM", "llama.cpp"), SHARDS)


def test_a_setting_names_the_file(copy):
    (copy / SINGLE).rename(copy / "weights.safetensors")
    found = taken(copy, {"transformers_weights": "weights.safetensors"})
    assert found["transformers"] == found["vLLM"] == ["weights.safetensors"]
    assert found["llama.cpp"] == []
    assert "llama.cpp takes none" in ambiguity(copy, {})


def test_an_adapter_is_added_by_some_loaders_alone(copy):
    (copy / "adapter_config.json").write_text("{}")
    result = inspect(copy)
    assert "transformers adds the adapter" in result["problems"][0]
    assert not any(r["loads"] for r in result["loads"] if "kernels" not in r["target"])
