"""Emulated CUDA kernels as one more backend of the operators that have some: "emulated".

Each call runs with several orders of threads and blocks, in memory with guards around what is written:
all have to give the same bits. `emulator.py` makes the library.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import emulator
import torch
from counting import no_emulator

from compressor.kernels import besa_cut, besa_mask, compact, dispatch, eliminate, native, rank

OPS = (besa_cut.OP, besa_mask.OP, besa_mask.BACKWARD, compact.OP, eliminate.OP, rank.OP)
# Of threads and blocks, descending: of any two, each is once the first. Under `make asan`, where they
# change places far more slowly, one.
ORDERS = (False,) if emulator.SANITIZED else (False, True)
GUARD = 256 << 10  # bytes on each side of an output: a wild 16-bit index stays inside
MOST_SHARED = 227 << 10  # bytes a block, as on an H100
MOST_RANKED = 32_768  # columns a block, with that much
PLAIN = {
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
}


class Emulated:
    """A library's launchers under the names and with the arguments of the extension's CPU launchers."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.failure.restype = ctypes.c_char_p
        self.descending, self.shared, self.ranked = False, MOST_SHARED, MOST_RANKED
        for name, parameters in emulator.declared().items():
            types = [PLAIN.get(p.rpartition(" ")[0], ctypes.c_void_p) for p in parameters]
            getattr(self.library, f"run_{name}").argtypes = types

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.launch(name.removesuffix("_cpu"), *arguments[:-1])

    def launch(self, name: str, *arguments) -> None:
        """RuntimeError with what the emulator saw that a kernel did wrong."""
        scratch: list[torch.Tensor] = []
        if name == "eliminate":
            wide, channels = arguments[3:5]
            scratch = eliminate.scratch(channels, torch.float64 if wide else torch.float32, "cpu")
            arguments = (*arguments, *(x.data_ptr() for x in scratch))
        if name == "rank":
            *sizes, scale, out = arguments
            rows, columns = sizes[2:4]
            parts = -(-columns // self.ranked)
            keys = torch.empty(rows, columns, dtype=torch.int32) if parts > 1 else None
            arguments = (*sizes, scale, parts, out, None if keys is None else keys.data_ptr())
        self.library.configure(self.descending, self.shared)
        status = getattr(self.library, f"run_{name}_cuda")(*arguments, None)
        if failure := self.library.failure().decode():
            raise RuntimeError(f"{name}_cuda: {failure}.")
        if status != 0:
            raise RuntimeError(f"{name}_cuda: status {status}.")


LOCK = threading.RLock()  # the emulator has one block, and the extension one place


@contextmanager
def guarded() -> Iterator[None]:
    """Memory from `torch.empty` lies between guards; AssertionError where one was written to."""
    made, empty = [], torch.empty

    def between(*size, dtype=None, device=None):
        size = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        bytes_ = size.numel() * (dtype or torch.get_default_dtype()).itemsize
        whole = empty(bytes_ + 2 * GUARD, dtype=torch.uint8).fill_(0x7F)
        made.append((whole, bytes_))
        inside = whole[GUARD : GUARD + bytes_]
        return inside.view(dtype or torch.get_default_dtype()).view(size)

    with mock.patch.object(torch, "empty", between):
        yield
    for whole, bytes_ in made:
        for guard in (whole[:GUARD], whole[GUARD + bytes_ :]):
            assert (guard == 0x7F).all(), "A kernel wrote beyond its output."


def emulating(ext: Callable, emulated: Emulated) -> Callable:
    """An operator's `ext` on emulated kernels, with every order of threads: the same bits each time."""

    def run(*arguments):
        with LOCK, mock.patch.object(native, "_C", emulated):
            results = []
            for emulated.descending in ORDERS:
                with guarded():
                    results.append(ext(*arguments))
            for result in results[1:]:
                assert same_bits(result, results[0]), "The order of threads changes the result."
            return results[0]

    return run


def same_bits(a, b) -> bool:
    """Of tensors, or of lists of them."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    bits = [t.contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return a.shape == b.shape and torch.equal(*bits)


@cache
def library() -> Emulated:
    return Emulated(emulator.build(emulator.sources()))


def has(op: dispatch.Op, device: str) -> bool:
    """Whether an operator runs emulated here."""
    return device == "cpu" and op in OPS and no_emulator(torch.cuda.is_available()) is None


def install(monkeypatch, emulated: Emulated) -> None:
    """Let operators have the backend, until the test ends."""
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, "emulated"))
    for op in OPS:
        run = emulating(op.implementations["ext"], emulated)
        monkeypatch.setitem(op.implementations, "emulated", run)
