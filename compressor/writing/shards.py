"""Files of a checkpoint that is written: shards, their index, and the folder that appears whole."""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from compressor.errors import InputError
from compressor.model.tensors import DTYPES, INDEX, PACKED_DTYPES, SINGLE

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_NAMES |= {dtype: name for name, dtype in PACKED_DTYPES.items()}
SHARD_BYTES = 5_000_000_000


def divided(
    results: Iterable[dict[str, torch.Tensor]], limit: int
) -> list[dict[str, torch.Tensor]]:
    """The tensors of all results, by name, in shards of at most `limit` bytes."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in (item for result in results for item in result.items()):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][name] = tensor
    return shards


@contextmanager
def opened(folder: Path, shards: list[dict[str, torch.Tensor]]):
    """The new files of all shards, by the name of each tensor they are to hold."""
    with ExitStack() as stack:
        files: dict[str, ShardFile] = {}
        for shard, file_name in zip(shards, shard_names(shards), strict=True):
            file = ShardFile(folder / file_name, shard)
            stack.callback(file.close)
            files |= dict.fromkeys(shard, file)
        yield files


def shard_names(shards: list) -> list[str]:
    if len(shards) == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]


def write_index(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    """The index that several shards need."""
    if len(shards) == 1:
        return
    tensors = [t for shard in shards for t in shard.values()]
    metadata = {
        "total_size": sum(t.nbytes for t in tensors),
        "total_parameters": sum(t.numel() for t in tensors),
    }
    names = zip(shards, shard_names(shards), strict=True)
    weight_map = {name: file for shard, file in names for name in shard}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class ShardFile:
    """One safetensors file whose header is known before its tensors: they are written one by one.

    safetensors' own writer wants all tensors at once, which for a shard is gigabytes of memory.
    """

    def __init__(
        self, path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None
    ):
        # Wide types first, so that every tensor begins at a multiple of its element size.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        header: dict[str, dict] = {"__metadata__": {"format": "pt"} | (about or {})}
        end = 0
        for name, tensor in ordered:
            begin, end = end, end + tensor.nbytes
            dtype = DTYPE_NAMES[tensor.dtype]
            shape = list(tensor.shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header, self.begin = header, 8 + len(text)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.truncate(self.begin + end)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        if list(tensor.shape) != self.header[name]["shape"]:
            raise AssertionError(f"{name}: {list(tensor.shape)} was announced otherwise")
        self.file.seek(self.begin + self.header[name]["data_offsets"][0])
        data = tensor.contiguous().flatten().view(torch.uint8).numpy()
        self.file.write(data)  # type: ignore[arg-type]  # a Buffer to the stubs from Python 3.12 on

    def close(self) -> None:
        self.file.close()


def move_into(folder: Path, other: Path) -> None:
    """Put a folder's files in the place of another's and remove it; may be broken off and done again."""
    for file in folder.iterdir():
        target = other / file.name
        if target.is_dir():  # of side data, which is the same in both
            shutil.rmtree(target)
        file.replace(target)
    folder.rmdir()


def flush(folder: Path) -> None:
    """Have all of a folder on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_one(path)


def flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(folder: Path, final: Path, replace: bool = False) -> None:
    """Make a complete folder, which is on the disk, appear under its name.

    To `replace` a folder of that name, it is moved aside first and removed when the new one stands.
    Without that nothing is replaced, though it came while the new one was made.
    """
    former = final.with_name(final.name + ".old")
    if final.exists():
        if not replace:
            raise InputError(
                f"{final} has come to be while this was made, and is not replaced; move it away."
            )
        shutil.rmtree(former, ignore_errors=True)
        final.rename(former)
    folder.rename(final)
    flush_one(final.absolute().parent)
    if replace:  # else what has that name is of a job that was killed while it replaced it
        shutil.rmtree(former, ignore_errors=True)
