"""What a sparse checkpoint's files must hold, by its compression.json."""

from pathlib import Path

import torch

from compressor.errors import VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.digest import digest


def check_sparse(folder: Path, record: dict, source: Path | None = None) -> int:
    """Zeros in the folder's projections, counted from its files; they must be those of the record.

    The tensors' bytes must have the recorded digests. With a source, all other tensors must be the
    source's, and the weights that stay too unless the method corrects them. `VerificationError`.
    """
    checkpoint, given = Checkpoint(folder), source and Checkpoint(source)
    total = 0
    for index, entry in enumerate(record["blocks"]):
        tensors = checkpoint.read_block(index)
        for name, zeros in entry["zeros"].items():
            found = int((tensors[name] == 0).sum())
            total += found
            if found != zeros:
                raise VerificationError(
                    f"{checkpoint.block_name(index, name)} in {folder} has {found:,} zeros, and "
                    f"compression.json says {zeros:,}."
                )
        if digest({name: tensors[name] for name in entry["zeros"]}) != entry["sha256"]:
            raise VerificationError(
                f"The weights of block {index} in {folder} are not those that were made."
            )
        for name, tensor in (given.read_block(index) if given else {}).items():
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
