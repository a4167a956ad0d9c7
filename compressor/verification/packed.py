"""What a quantised folder's files must hold, by its compression.json; its model, kept packed."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from compressor.errors import VerificationError
from compressor.model.digest import digest
from compressor.model.exact_logits import stored_rows
from compressor.model.tensors import read_tensors
from compressor.quantization.reading import PackedCheckpoint
from compressor.writing.packing import PACKED, SCALE, SHAPE, unpacked


def check_packed(folder: Path, record: dict) -> None:
    """`VerificationError` unless every block's packed tensors have the digest in `record`."""
    checkpoint = PackedCheckpoint(folder)
    for index, entry in enumerate(record["blocks"]):
        prefix = checkpoint.block_name(index, "")
        names = [
            name
            for name in checkpoint.stored
            if name.startswith(prefix) and name.endswith((PACKED, SCALE, SHAPE))
        ]
        found = read_tensors(checkpoint.stored, names)
        if digest({n.removeprefix(prefix): t for n, t in found.items()}) != entry["sha256"]:
            raise VerificationError(
                f"The packed weights of block {index} in {folder} are not those that were made."
            )


def stay_packed(model: torch.nn.Module) -> None:
    """Have a loaded model not unpack all its weights at its first forward."""
    if hook := getattr(model, "ct_decompress_hook", None):
        hook.remove()


def rows_of(module: torch.nn.Linear, count: int) -> Iterator[torch.Tensor]:
    """The weight of a linear layer, `count` rows at a time; a packed one is unpacked so."""
    if not hasattr(module, "weight_packed"):
        yield from stored_rows(module, count)
        return
    columns = int(cast(torch.Tensor, module.weight_shape)[1])
    pairs = zip(module.weight_packed.split(count), module.weight_scale.split(count), strict=True)
    for packed, scale in pairs:
        yield unpacked(packed, scale, [len(packed), columns])
