"""What a training holds and computes in, and whether there is memory for it."""

import torch

from compressor.config.ranks import on_machine
from compressor.errors import MachineError
from compressor.model.memory import free_memory

TRAINED = 4 + 4 + 8  # bytes of a weight that is trained itself: it, its gradient, AdamW's moments


def held_dtype(stored: torch.dtype, on_cpu: bool, asked: str) -> torch.dtype:
    """What the frozen weights are held in: as stored on a GPU, float32 on a CPU unless asked."""
    keep = not on_cpu if asked == "auto" else asked != "float32"
    return stored if keep else torch.float32


def computed_dtype(on_cpu: bool, asked: str) -> torch.dtype:
    """What products are computed in: bfloat16 on a GPU, whose range float16 lacks; float32 on a CPU."""
    if asked == "auto":
        return torch.float32 if on_cpu else torch.bfloat16
    return torch.float32 if asked == "float32" else torch.bfloat16


def held_bytes(
    parameters: int, stored: torch.dtype, device: str, asked: str, adapts: bool = True
) -> int:
    """What the weights of so many parameters take in a training; adapts: of adapters beside them."""
    held = held_dtype(stored, device.startswith("cpu"), asked).itemsize
    return parameters * (held if adapts else TRAINED)


def room(device: str, limit: float | None) -> float:
    """Bytes that a process may take: `limit`, or what is free; those of one machine share its memory."""
    return limit or free_memory(device) / (on_machine() if device.startswith("cpu") else 1)


def check_memory(
    parameters: int,
    stored: torch.dtype,
    device: str,
    asked: str,
    limit: float | None,
    adapts: bool = True,
    processes: int = 1,
) -> None:
    """Refuse a model of so many parameters whose weights alone do not fit: training, unlike all else,
    holds the whole cut model. limit: bytes, in place of the memory that is free. processes: how many
    hold a part each.
    """
    free = room(device, limit)
    needed = held_bytes(parameters, stored, device, asked, adapts)
    if needed / processes > free:
        name = str(held_dtype(stored, device.startswith("cpu"), asked)).removeprefix("torch.")
        alone = processes == 1
        what = f"in {name}" if adapts else "with gradients and AdamW's moments"
        shared = "" if alone else f", which {processes} processes share"
        narrower = "--dtype bfloat16" if adapts else "--recover lora"
        raise MachineError(
            f"--recover holds the whole cut model in memory: {needed / 1e9:.3g} GB {what}{shared}, and "
            f"{free / 1e9:.3g} GB are free for {device if alone else 'each'}. Use {narrower} or "
            f"{'another device' if alone else 'more processes'}, or cut without recovery."
        )
