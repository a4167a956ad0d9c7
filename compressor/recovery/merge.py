"""Merging adapters into a checkpoint's dense tensors, one tensor in memory at a time."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from compressor.checkpoint import Checkpoint
from compressor.per_layer import SHIPPED
from compressor.recovery.lora import Adapters
from compressor.shards import ShardFile, check_space
from compressor.tensors import INDEX
from compressor.writing import copy_side_files, empty


def merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + scaling B A of W [out, in], A [rank, in], B [out, rank]: summed in float32, rounded once."""
    return (weight.float() + scaling * (b @ a)).to(weight.dtype)


def write_merged(
    folder: Path,
    out: Path,
    adapters: Adapters,
    scaling: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """The checkpoint in `folder` with its adapters merged, as the new folder `out`.

    Files, shards, tensor order and dtypes are those of `folder`; what has no adapter is copied.
    """
    checkpoint = Checkpoint(folder)
    check_space(folder, checkpoint.bytes)
    out.mkdir()
    shards: dict[Path, list[str]] = defaultdict(list)
    for name, entry in checkpoint.tensors.items():
        shards[entry.file].append(name)
    done = 0
    for path, names in shards.items():
        announced = {n: checkpoint.as_stored(n, empty(checkpoint, n)) for n in names}
        with closing(ShardFile(out / path.name, announced)) as file:
            for name in names:
                tensor = checkpoint.read([name])[name]
                module, _, leaf = name.rpartition(".")
                if leaf == "weight" and module in adapters:
                    tensor = merged(tensor, *adapters[module], scaling)
                file.put(name, checkpoint.as_stored(name, tensor))
                done += 1
                progress(done, len(checkpoint.tensors))
    copy_side_files(checkpoint, out)
    for name in ("config.json", INDEX, *SHIPPED):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
