"""What a pass over the blocks says of each, kept in a file a block, so that a kill loses none of it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from compressor.errors import InputError


def finished_block(folder: Path | None, index: int) -> dict[str, torch.Tensor] | None:
    """What an interrupted pass left of a block in `folder`; None if it did not come so far."""
    file = folder and folder / f"{index}.safetensors"
    if not file or not file.exists():
        return None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}; remove it, and it is made anew.") from error


def told_of_block(folder: Path, index: int) -> Any:
    """What was kept beside the tensors of a finished block."""
    with safe_open(folder / f"{index}.safetensors", "pt") as file:
        return json.loads(file.metadata()["told"])


def keep_block(
    folder: Path | None,
    index: int,
    tensors: dict[str, torch.Tensor],
    told: dict | list | None = None,
) -> None:
    """Save what a pass says of a block; a kill leaves the whole file or none."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "unfinished"
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, unfinished, {"told": json.dumps(told)})
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())  # or a machine that stops could leave the name of an empty file
    unfinished.replace(folder / f"{index}.safetensors")


def count_blocks(folder: Path | None) -> int:
    """How many blocks a pass has kept in `folder`."""
    return sum(file.stem.isdigit() for file in folder.glob("*.safetensors")) if folder else 0
