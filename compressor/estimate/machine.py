"""The ceilings of this machine, measured: a copy, a square product, and a product with few rows."""

import platform
import statistics
import time
from collections.abc import Callable
from functools import lru_cache

import torch

from compressor.errors import MachineError
from compressor.estimate.roofline import Device

LARGE = {"cpu": 2**28, "cuda": 2**30}  # bytes, far beyond any cache
SIDE = {"cpu": 2048, "cuda": 8192}


def seconds(function: Callable, device: str, repeats: int = 7) -> float:
    """Median seconds of a call: by events and with a cold L2 on a GPU, by the clock on a CPU."""
    if device.startswith("cuda"):
        from triton.testing import do_bench

        return do_bench(function, warmup=50, rep=200, return_mode="median") / 1e3
    function()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def copy_bandwidth(device: str, size: int | None = None) -> float:
    """Bytes a second, read plus written, of a copy of `size` bytes, by default beyond any cache."""
    source = torch.empty(size or LARGE[kind(device)], dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def multiply_rate(device: str, dtype: torch.dtype = torch.float32, repeats: int = 7) -> float:
    """FLOPs a second of a large square product; float32 without reduced precision inside."""
    torch.set_float32_matmul_precision("highest")
    size = SIDE[kind(device)]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, repeats)


def product_bandwidth(device: str, dtype: torch.dtype, rows: int, size: int) -> float:
    """Bytes of weights a second in products of `rows` rows: what decoding is made of.

    `size` bytes of square matrices are multiplied one after the other, as a model's are.
    """
    side = 2048
    count = max(1, size // (side * side * dtype.itemsize))
    matrices = [torch.randn(side, side, device=device).to(dtype) for _ in range(count)]
    x = torch.randn(rows, side, device=device).to(dtype)

    def stream() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(x, matrix)

    return sum(m.nbytes for m in matrices) / seconds(stream, device)


def measured_device(name: str, dtype: torch.dtype, read: int, batch: int) -> tuple[Device, Device]:
    """This machine as a `Device`, for a model that reads `read` bytes a step: twice.

    The first has the ceilings: the bandwidth of a copy that touches as many bytes as the model reads
    (what fits a cache is faster there), and the rate of a product. The second has, in place of the
    copy, the rate at which products of `batch` rows read weights, which a library may reach or not.
    """
    size = min(read, 2 * LARGE[kind(name)])
    return _measured_device(name, dtype, size, batch)


@lru_cache
def _measured_device(name: str, dtype: torch.dtype, size: int, batch: int) -> tuple[Device, Device]:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {name!r} cannot be used: {error}") from error
    peak = {dtype: multiply_rate(name, dtype, repeats=3)}
    copied = copy_bandwidth(name, max(size // 2, 1 << 16))
    read = product_bandwidth(name, dtype, batch, size)
    source = f"measured in this run on {describe(name)}"
    return Device(name, copied, peak, source), Device(name, read, peak, source)


def kind(device: str) -> str:
    return device.partition(":")[0]


def describe(device: str) -> str:
    if kind(device) == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
