"""What the files of a quantised or sparse folder must hold, by its compression.json.

And how a quantised model computes without being unpacked as a whole.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from compressor.config.packing import Packing
from compressor.errors import VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.digest import digest
from compressor.model.exact_logits import stored_rows
from compressor.model.tensors import read_tensors
from compressor.quantization.dense import open_source
from compressor.quantization.reading import PackedCheckpoint
from compressor.writing.packing import GLOBAL, SCALE, unpacked


def check_packed(folder: Path, record: dict) -> None:
    """`VerificationError` unless every block's packed tensors have the digest in `record`."""
    checkpoint = PackedCheckpoint(folder)
    packed = {part for parts in checkpoint.parts.values() for part in parts}
    for index, entry in enumerate(record["blocks"]):
        prefix = checkpoint.block_name(index, "")
        names = [name for name in checkpoint.stored if name.startswith(prefix) and name in packed]
        tensors = read_tensors(checkpoint.stored, names)
        if digest({n.removeprefix(prefix): t for n, t in tensors.items()}) != entry["sha256"]:
            raise VerificationError(
                f"The packed weights of block {index} in {folder} are not those that were made."
            )


def check_sparse(folder: Path, record: dict, source: Path | None = None) -> int:
    """Zeros in the folder's projections, counted from its files; they must be those of the record.

    The tensors' bytes must have the recorded digests. With a source, all other tensors must be the
    source's, and the weights that stay too unless the method corrects them. `VerificationError`.
    """
    checkpoint, dense = Checkpoint(folder), source and open_source(source)
    total = 0
    for index, entry in enumerate(record["blocks"]):
        tensors = checkpoint.read_block(index)
        for name, zeros in entry["zeros"].items():
            counted = int((tensors[name] == 0).sum())
            total += counted
            if counted != zeros:
                raise VerificationError(
                    f"{checkpoint.block_name(index, name)} in {folder} has {counted:,} zeros, and "
                    f"compression.json says {zeros:,}."
                )
        if digest({name: tensors[name] for name in entry["zeros"]}) != entry["sha256"]:
            raise VerificationError(
                f"The weights of block {index} in {folder} are not those that were made."
            )
        for name, tensor in (dense.read_block(index) if dense else {}).items():
            pruned = name in entry["zeros"]
            if pruned and record["corrects"]:
                continue
            kept = tensors[name] != 0 if pruned else torch.ones_like(tensor, dtype=torch.bool)
            if not torch.equal(tensors[name][kept], tensor[kept]):
                raise VerificationError(
                    f"{checkpoint.block_name(index, name)} in {folder} differs from {source} where "
                    "it should not."
                )
    return total


def stay_packed(model: torch.nn.Module) -> None:
    """Have a loaded model not unpack all its weights at its first forward."""
    if hook := getattr(model, "ct_decompress_hook", None):
        hook.remove()


def rows_of(packing: Packing, module: torch.nn.Linear, count: int) -> Iterator[torch.Tensor]:
    """The weight of a linear layer, `count` rows at a time; a packed one is unpacked so."""
    if not hasattr(module, "weight" + SCALE):
        yield from stored_rows(module, count)
        return
    main = packing.known.parts[0]
    whole = {GLOBAL: module.weight_global_scale} if GLOBAL in packing.known.parts else {}
    of_rows = (getattr(module, "weight" + end).split(count) for end in (main, SCALE))
    for rows, scales in zip(*of_rows, strict=True):
        shape = [len(rows), module.in_features]
        yield unpacked({main: rows, SCALE: scales} | whole, shape, packing)
