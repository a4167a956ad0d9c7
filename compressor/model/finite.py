"""NaN and infinite values stop a run by the name of the tensor."""

from typing import Generic, TypeVar

import torch

from compressor.errors import DamagedError
from compressor.model.source import Source

Name = TypeVar("Name")


class Levels(Generic[Name]):
    """The largest absolute values seen under each name, NaN or infinite where one was. They stay on the
    device until they are asked for, as the host would have to wait for each.
    """

    def __init__(self):
        self.of: dict[Name, torch.Tensor] = {}

    def add(self, name: Name, tensor: torch.Tensor) -> None:
        if tensor.numel() and tensor.is_floating_point():
            low, high = tensor.aminmax()
            level = torch.maximum(high, -low)
            self.of[name] = torch.maximum(self.of[name], level) if name in self.of else level

    def not_finite(self) -> list[Name]:
        """The names under which something was NaN or infinite; waits for the device once."""
        if not self.of:
            return []
        finite = torch.stack([level.isfinite() for level in self.of.values()]).tolist()
        return [name for name, so in zip(self.of, finite, strict=True) if not so]


def check_block(checkpoint: Source, index: int, weights: dict[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity in a block's weights, by the tensor's name."""
    levels: Levels[str] = Levels()
    for name, tensor in weights.items():
        levels.add(checkpoint.block_name(index, name), tensor)
    refuse(levels)


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
    levels: Levels[str] = Levels()
    levels.add(name, tensor)
    refuse(levels)


def refuse(levels: Levels[str]) -> None:
    for name in levels.not_finite():
        raise DamagedError(f"{name} holds NaN or infinite values; the checkpoint is damaged.")
