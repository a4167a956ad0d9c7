"""The stream of a job: on which device, in which dtype, with its activations where there is room."""

from pathlib import Path

import torch

from compressor.config.choices import check_dtype
from compressor.config.runtime import Runtime
from compressor.errors import MachineError
from compressor.model.memory import free_at_once, free_memory
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.recovery.data import RecoveryData
from compressor.text.tokens import TokenSet

ROOM = 0.25  # of the free memory of a device or the host, for activations


def open_stream(
    runtime: Runtime,
    checkpoint: Source,
    offload: Path,
    states: int,
    *tokens: TokenSet | RecoveryData | None,
) -> BlockStream:
    """A stream on the chosen device and dtype, whose activations are where there is room for them.

    states: how many hidden states of every token are kept at once.
    """
    device = chosen_device(runtime.device)
    dtype = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    memory = runtime.max_memory or free_memory("cpu")
    count = max((t.tokens for t in tokens if t is not None), default=0)
    needed = states * count * checkpoint.hidden_size * dtype.itemsize
    try:
        where = place(needed, device, memory, offload)
        if isinstance(where, Path):
            free_at_once()  # memory is what there is least of
        return BlockStream(checkpoint, device, dtype, where)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {device!r} cannot be used: {error}") from error


def chosen_device(asked: str | None) -> str:
    """The device that was asked for, or a GPU if one is there."""
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def place(needed: int, device: str, memory: float, folder: Path) -> torch.device | Path | None:
    """Where so many bytes of activations are kept: on the GPU, in host memory (None) or in files."""
    if device.startswith("cuda") and needed <= ROOM * torch.cuda.mem_get_info(device)[0]:
        return torch.device(device)
    return folder if needed > ROOM * memory else None


def compute_dtype(asked: str, stored: torch.dtype, device: str) -> torch.dtype:
    """`auto` is the stored dtype, but float32 for float16 on a CPU, which has no such units."""
    check_dtype(asked)
    if asked == "auto":
        half_on_cpu = stored == torch.float16 and device == "cpu"
        return torch.float32 if half_on_cpu else stored
    return getattr(torch, asked)
