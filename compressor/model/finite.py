"""NaN and infinite values stop a run by the name of the tensor."""

import torch

from compressor.errors import DamagedError
from compressor.model.source import Source


def check_block(checkpoint: Source, index: int, weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        check_finite(checkpoint.block_name(index, name), tensor)


def check_outer(checkpoint: Source) -> None:
    """Of embedding, last norm and head."""
    for name in checkpoint.outer_tensors():
        check_finite(name, checkpoint.read([name])[name])


def check_weights(checkpoint: Source) -> None:
    """Refuse a checkpoint with NaN or infinity anywhere, by the tensor's name; reads all of it."""
    check_outer(checkpoint)
    for index in range(checkpoint.blocks):
        check_block(checkpoint, index, checkpoint.read_block(index))


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity, by name."""
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise DamagedError(f"{name} holds NaN or infinite values; the checkpoint is damaged.")
