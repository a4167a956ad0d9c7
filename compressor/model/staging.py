"""Blocks on their way to a GPU: the next one is read and copied while the present one computes.

A block's bytes are read into pinned memory, of which there are two buffers in turn, and go to the device
as one copy on a stream of its own: only from pinned memory does a copy run beside computation and the
host go on meanwhile. The stream that computes waits for the copy on the device, not the host.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import torch

from compressor.errors import InputError
from compressor.model.beside import one_thread
from compressor.model.source import Source

BUFFERS = 2  # of pinned memory: one is read into while the other is copied from
AHEAD = 2  # blocks whose computation may be under way on the device
ALIGNED = 256  # bytes: where a tensor begins, as the device's own allocations do

Block = dict[str, torch.Tensor]
Fetched = TypeVar("Fetched")


@dataclass
class Buffer:
    """Pinned memory, and when the last copy out of it is done."""

    memory: torch.Tensor | None = None
    copied: torch.cuda.Event | None = None

    def of(self, size: int) -> torch.Tensor:
        """`size` bytes that nothing is copied from any more."""
        if self.copied is not None:
            self.copied.synchronize()
        if self.memory is None or len(self.memory) < size:
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self.memory[:size]


def staged(
    source: Source, blocks: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[int, Block]]:
    """Index and weights of these blocks in order, on the device and of this dtype."""
    copying, buffers = copying_stream(device), cycle([Buffer() for _ in range(BUFFERS)])
    spent: list[torch.cuda.Event] = []  # when each block was computed with

    def fetch(index: int) -> tuple[Block, torch.Tensor, torch.cuda.Event]:
        if len(spent) >= AHEAD:  # or blocks that wait for a busy device would fill its memory
            spent.pop(0).synchronize()
        source.will_need_block(index)
        buffer = next(buffers)
        names = [source.block_name(index, name) for name in source.block_tensors(index)]
        places, size = places_of(source, names)
        held = buffer.of(size)
        fill(source, places, held)
        with torch.cuda.stream(copying):
            arrived = held.to(device, non_blocking=True)
            buffer.copied = copying.record_event()
            whole = views(source, places, arrived)
            block = {n.removeprefix(source.block_name(index, "")): t for n, t in whole.items()}
            of = source.family.dtype_of
            block = {name: tensor.to(of(name, dtype)) for name, tensor in block.items()}
            return block, arrived, copying.record_event()

    for index, (block, arrived, done) in fetched_ahead(blocks, fetch):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(done)
        # Else their memory would be given to the next copy as soon as nobody here names them.
        for tensor in (arrived, *block.values()):
            tensor.record_stream(computing)
        yield index, block
        spent.append(computing.record_event())


def fetched_ahead(
    blocks: Sequence[int], fetch: Callable[[int], Fetched]
) -> Iterator[tuple[int, Fetched]]:
    """Each of these blocks with what `fetch` gives of it; the next one is being fetched meanwhile."""
    with one_thread() as pool:
        ahead = pool.submit(fetch, blocks[0])
        for index, following in zip(blocks, [*blocks[1:], None], strict=True):
            found = ahead.result()
            if following is not None:
                ahead = pool.submit(fetch, following)
            yield index, found


@cache
def copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: torch keeps the memory that a stream has freed for that stream."""
    return torch.cuda.Stream(device)


def places_of(source: Source, names: list[str]) -> tuple[dict[str, slice], int]:
    """Where in a buffer each tensor lies, in the order of the files, and how long that is."""
    places, end = {}, 0
    for name in sorted(names, key=lambda name: source.tensors[name].begin):
        entry = source.tensors[name]
        places[name] = slice(end, end + entry.numel * entry.dtype.itemsize)
        end = -(-places[name].stop // ALIGNED) * ALIGNED
    return places, end


def fill(source: Source, places: dict[str, slice], buffer: torch.Tensor) -> None:
    """Read the tensors into their places: as they are stored, straight from the files."""
    for name, place in places.items():
        if (file := source.file_of(name)) is not None:
            memory = buffer[place].numpy()
            read_into(file, source.tensors[name].begin, memoryview(memory))  # type: ignore[arg-type]
        else:
            stored = source.as_stored(name, source.read([name])[name])
            buffer[place].view(stored.dtype).view(stored.shape).copy_(stored)


def read_into(file: Path, begin: int, memory: memoryview) -> None:
    """The bytes of a file from `begin` on, as many as there is memory."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        while memory:
            count = stream.readinto(memory)
            if not count:
                raise InputError(
                    f"{file} was shortened while it was read: {len(memory):,} bytes are missing from "
                    f"byte {stream.tell():,} on. Restore it, and run again with --resume."
                )
            memory = memory[count:]


def views(source: Source, places: dict[str, slice], memory: torch.Tensor) -> Block:
    """The tensors in their places, by name, as `Source.read` has them."""
    tensors = {}
    for name, place in places.items():
        entry = source.tensors[name]
        shape = entry.shape[::-1] if entry.transposed else entry.shape
        tensor = memory[place].view(entry.dtype).view(shape)
        tensors[name] = tensor.t() if entry.transposed else tensor
    return tensors
