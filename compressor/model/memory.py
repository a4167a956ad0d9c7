"""Memory: how much is free, and giving back mapped pages and what the allocator keeps."""

import ctypes
import gc
import mmap
import sys
from pathlib import Path

import psutil
import torch

from compressor.model import cgroups

MADV_DONTNEED = 4
M_MMAP_THRESHOLD = -3
LARGE = 1 << 20  # bytes
LINUX = sys.platform.startswith("linux")


def drop_pages(tensor: torch.Tensor) -> None:
    """Give back the resident pages of a tensor that is mapped from a file; they are read again.

    Only for tensors that nobody wrote to: in a private mapping, written pages would be lost.
    """
    if not LINUX or tensor.device.type != "cpu" or not is_mapped(tensor):
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED
        )


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is a mapped file (hub caches give them any name)."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        begin, end = (int(x, 16) for x in span.split("-"))
        if begin <= address < end:
            return name.startswith("/") and not name.startswith("/dev/")
    return False


def free_memory(device: str) -> int:
    """Bytes that are free where tensors on `device` would be."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    return int(min(psutil.virtual_memory().available, cgroups.room()))


def is_full(error: RuntimeError) -> bool:
    """Whether a device had no memory left, for torch or for a library that it calls."""
    said = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in said)


def give_back(device: str | torch.device) -> None:
    """Return what was freed on a GPU, which torch keeps otherwise, to those who share it."""
    gc.collect()  # a thread's failure and what awaited it hold each other, and their tensors
    if str(device).startswith("cuda"):
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Return freed memory to the system (glibc keeps it otherwise)."""
    if LINUX and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def free_at_once() -> None:
    """From here on, what large tensors had goes back to the system where they are freed.

    By itself glibc takes ever larger ones from its heap, after the first that was freed. There small
    tensors that stay come to lie in the holes, which then are too small for the next large one: the heap
    grows. The price is that the system clears every page anew, for each of these tensors.
    """
    if LINUX and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
