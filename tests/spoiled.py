"""Folders as other tools leave them, of a model whose last units are zero and change no logit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from compressor.model.loading import load
from compressor.model.tensors import SINGLE

IDS = torch.tensor([[1, 7, 40, 3, 99, 64, 12, 5]])
FFN, GROUPS = 20, 2  # channels and KV groups that are not zero, of 48 and 4
HEAD_DIM, PER_GROUP = 4, 8  # channels of a head, and of the queries of a KV group


@dataclass(frozen=True)
class Case:
    """spoil: makes the fault. fault: its name. says: of config.json afterwards. answers: of the user."""

    spoil: Callable
    fault: str
    says: dict = field(default_factory=dict)
    answers: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spoil.__name__


def silence(tensors) -> None:
    """Zeros in what reads all units but the first ones."""
    for name, tensor in tensors.items():
        if name.endswith("down_proj.weight"):
            tensor[:, FFN:] = 0
        if name.endswith("o_proj.weight"):
            tensor[:, GROUPS * PER_GROUP :] = 0


def narrow_ffn(tensors, block, channels) -> None:
    for part in ("gate_proj", "up_proj"):
        name = f"model.layers.{block}.mlp.{part}.weight"
        tensors[name] = tensors[name][:channels].clone()
    name = f"model.layers.{block}.mlp.down_proj.weight"
    tensors[name] = tensors[name][:, :channels].clone()


def narrow_heads(tensors, block, groups, queries=PER_GROUP) -> None:
    """So many KV groups, of so many channels of queries each."""
    attention = f"model.layers.{block}.self_attn"
    for part, rows in (("q", queries), ("k", HEAD_DIM), ("v", HEAD_DIM)):
        name = f"{attention}.{part}_proj.weight"
        tensors[name] = tensors[name][: groups * rows].clone()
    name = f"{attention}.o_proj.weight"
    tensors[name] = tensors[name][:, : groups * queries].clone()


def as_state_dict(folder: Path, name: str = "pytorch_model.bin", **more) -> None:
    """The weights as a pickled state dict alone."""
    torch.save(load_file(folder / SINGLE) | more, folder / name)
    (folder / SINGLE).unlink()


def as_shards(folder: Path, names: list[str]) -> dict[str, str]:
    """The single file as files of these names; what an index would say of them."""
    tensors = load_file(folder / SINGLE)
    ordered = sorted(tensors)
    placed = {name: names[i % len(names)] for i, name in enumerate(ordered)}
    for file in names:
        part = {name: tensors[name] for name in ordered if placed[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    (folder / SINGLE).unlink()
    return placed


def logits(folder: Path) -> torch.Tensor:
    model, _ = load(folder)
    with torch.no_grad():
        return model(IDS).logits
