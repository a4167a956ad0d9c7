"""What a training holds and computes in, and whether there is memory for it."""

import torch

from compressor.errors import MachineError
from compressor.model.memory import free_memory


def held_dtype(stored: torch.dtype, on_cpu: bool, asked: str) -> torch.dtype:
    """What the frozen weights are held in: as stored on a GPU, float32 on a CPU unless asked."""
    keep = not on_cpu if asked == "auto" else asked != "float32"
    return stored if keep else torch.float32


def computed_dtype(on_cpu: bool, asked: str) -> torch.dtype:
    """What products are computed in: bfloat16 on a GPU, whose range float16 lacks; float32 on a CPU."""
    if asked == "auto":
        return torch.float32 if on_cpu else torch.bfloat16
    return torch.float32 if asked == "float32" else torch.bfloat16


def check_memory(
    parameters: int, stored: torch.dtype, device: str, asked: str, limit: float | None
) -> None:
    """Refuse a model of so many parameters whose weights alone do not fit: training, unlike all else,
    holds the whole cut model. limit: bytes, in place of the memory that is free.
    """
    free = limit or free_memory(device)
    held = held_dtype(stored, device.startswith("cpu"), asked)
    needed = parameters * held.itemsize
    if needed > free:
        name = str(held).removeprefix("torch.")
        raise MachineError(
            f"--recover holds the whole cut model in memory: {needed / 1e9:.3g} GB in {name}, and "
            f"{free / 1e9:.3g} GB are free for {device}. Use --dtype bfloat16 or another device, or "
            "cut without recovery."
        )
