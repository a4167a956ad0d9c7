"""What was trained as a checkpoint's dense tensors, one of them in memory at a time."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from compressor.config.json_files import ESCAPED
from compressor.model.checkpoint import Checkpoint
from compressor.model.disk import check_space
from compressor.model.per_layer import SHIPPED
from compressor.model.tensors import stored
from compressor.recovery.lora import Adapters
from compressor.writing.shards import opened, write_index
from compressor.writing.side_files import copy_side_files
from compressor.writing.writer import empty, empty_of


def merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + scaling B A of W [out, in], A [rank, in], B [out, rank]: summed in float32, rounded once."""
    return (weight.float() + scaling * (b @ a)).to(weight.dtype)


def write_merged(folder: Path, out: Path, adapters: Adapters, scaling: float) -> None:
    """The checkpoint in `folder` with its adapters merged, as the new folder `out`; what has no adapter
    is copied.
    """
    checkpoint = Checkpoint(folder)

    def made(name: str) -> torch.Tensor:
        tensor = checkpoint.read([name])[name]
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module in adapters:
            tensor = merged(tensor, *adapters[module], scaling)
        return tensor

    write_changed(checkpoint, out, made)


def write_changed(checkpoint: Checkpoint, out: Path, made: Callable[[str], torch.Tensor]) -> None:
    """A checkpoint with the tensors made(name), as the new folder `out`.

    Shards, tensor order and dtypes are those of the checkpoint.
    """
    folder = checkpoint.path
    check_space(folder, checkpoint.bytes)
    out.mkdir()
    by_file: dict[Path, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, entry in checkpoint.tensors.items():
        file = stored([entry])[0].file  # of a stack of experts, that of the first
        held = checkpoint.in_files(name, empty(checkpoint, name), checkpoint.stacks)
        by_file[file] |= {checkpoint.stored_name(part): tensor for part, tensor in held.items()}
    for name, entry in checkpoint.side.items():
        by_file[entry.file][name] = empty_of(entry)
    shards = list(by_file.values())
    with opened(out, shards) as files:
        for name in checkpoint.side:
            files[name].put(name, checkpoint.read_side(name))
        for name in checkpoint.tensors:
            for part, held in checkpoint.in_files(name, made(name), checkpoint.stacks).items():
                stored_name = checkpoint.stored_name(part)
                files[stored_name].put(stored_name, held)
    write_index(out, shards)
    copy_side_files(checkpoint, out)
    config = checkpoint.whole_config(checkpoint.written_config)
    text = (folder / "config.json").read_text(encoding="utf-8")
    if json.loads(text) != config:  # it was read as another
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8", errors=ESCAPED)
    for name in SHIPPED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
