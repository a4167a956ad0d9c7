"""Folders whose files loaders stumble over, all of the same model."""

import json

import torch
from edits import edit_config, edit_tensors
from safetensors.torch import load_file, save_file
from spoiled import Case, as_shards, as_state_dict

from compressor.model.tensors import INDEX, SINGLE

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def state_dict(folder):
    as_state_dict(folder)


def checkpoint_of_a_training(folder):
    torch.save({"state_dict": load_file(folder / SINGLE), "step": 3}, folder / "last.pt")
    torch.save({"lr": 0.1}, folder / "optimizer.pt")
    (folder / SINGLE).unlink()


def old_pickle(folder):
    """The format before PyTorch 1.6, which cannot be mapped."""
    torch.save(
        load_file(folder / SINGLE),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    (folder / SINGLE).unlink()


def wrapped(folder):
    def change(tensors):
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    edit_tensors(folder, change)


def no_index(folder):
    as_shards(folder, SHARDS)


def index_of_others(folder):
    """It was made before the files were named anew."""
    placed = as_shards(folder, SHARDS)
    named = {name: file.replace("model-", "old-") for name, file in placed.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))


def totals(folder):
    placed = as_shards(folder, SHARDS)
    index = {"metadata": {"total_size": 7}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index))


def half_an_index(folder):
    placed = as_shards(folder, SHARDS)
    some = {name: file for name, file in placed.items() if "layers.1" not in name}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": some}))


def variant(folder):
    (folder / SINGLE).rename(folder / "model.fp16.safetensors")


def redirected(folder):
    (folder / SINGLE).rename(folder / "weights.safetensors")
    edit_config(folder, transformers_weights="weights.safetensors")


def twice(folder):
    whole = (folder / SINGLE).read_bytes()
    placed = as_shards(folder, SHARDS)
    (folder / SINGLE).write_bytes(whole)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def index_alone_left(folder):
    """The shards went, and their index stayed beside the single file."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / SINGLE), SHARDS[0])}
    (folder / INDEX).write_text(json.dumps(index))


def another_save(folder):
    """Other weights that vLLM reads, too."""
    moved = {name: tensor + 1 for name, tensor in load_file(folder / SINGLE).items()}
    save_file(moved, folder / "old.safetensors", {"format": "pt"})


def adapter_settings(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def adapter_of_zeros(folder):
    adapter_settings(folder)
    factors = {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.zeros(3, 2)}
    save_file(factors, folder / "adapter_model.safetensors")


def merged_adapter(folder):
    adapter_settings(folder)
    factors = {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(3, 2)}
    save_file(factors, folder / "adapter_model.safetensors")


FILES = (
    Case(state_dict, "pickled weights"),
    Case(checkpoint_of_a_training, "pickled weights"),
    Case(old_pickle, "pickled weights"),
    Case(wrapped, "names"),
    Case(no_index, "index"),
    Case(index_of_others, "index"),
    Case(totals, "index"),
    Case(half_an_index, "index"),
    Case(variant, "index"),
    Case(redirected, "weights by another name", {"transformers_weights": None}),
    Case(twice, "weights twice"),
    Case(index_alone_left, "weights twice"),
    Case(another_save, "weights beside them"),
    Case(adapter_settings, "adapter"),
    Case(adapter_of_zeros, "adapter"),
    Case(merged_adapter, "adapter", answers={"merged": True}),
)
