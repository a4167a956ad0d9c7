"""The ceilings of this machine, measured: a copy, a square product, and products of few rows."""

import platform
from bisect import bisect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch

from compressor.analysis.estimate.roofline import DEVICES, Device, is_here
from compressor.kernels.bench.timing import seconds
from compressor.model.loading import check_device
from compressor.model.widths import ModelWidths

LARGE = {"cpu": 2**28, "cuda": 2**30}  # bytes, far beyond any cache
SIDE = {"cpu": 2048, "cuda": 8192}


@cache
def copy_bandwidth(device: str, size: int | None = None) -> float:
    """Bytes a second, read plus written, of a copy of `size` bytes, by default beyond any cache."""
    source = torch.empty(size or LARGE[kind(device)], dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


@cache
def multiply_rate(device: str, dtype: torch.dtype = torch.float32, repeats: int = 7) -> float:
    """FLOPs a second of a large square product; float32 without reduced precision inside."""
    torch.set_float32_matmul_precision("highest")
    size = SIDE[kind(device)]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, repeats)


def product_bandwidth(
    device: str, dtype: torch.dtype, rows: int, shapes: Sequence[tuple[int, int]]
) -> float:
    """Bytes of weights a second in products of `rows` rows with matrices of these shapes, in turn."""
    matrices = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
    inputs = [torch.randn(rows, m.shape[1], dtype=dtype, device=device) for m in matrices]

    def products() -> None:
        for x, matrix in zip(inputs, matrices, strict=True):
            torch.nn.functional.linear(x, matrix)

    return sum(m.nbytes for m in matrices) / seconds(products, device)


def device_for(name: str, model: ModelWidths, batch: int) -> tuple[Device, Device]:
    """The device of this name, for this model at this batch: twice.

    What is known from a data sheet is the same both times. Of this machine, the first has the ceilings:
    the bandwidth of a copy that touches as many bytes as the model has (what fits a cache is faster
    there), and the rate of a product. The second has, in place of the copy, the rate at which products
    of `batch` rows read matrices of the model's shapes, which is what decoding is made of.
    """
    if not is_here(name):
        return DEVICES[name], DEVICES[name]
    check_device(name)
    most = 2 * LARGE[kind(name)]
    shapes = [s for block in model.blocks for s in block.matrices]
    shapes.append((model.vocabulary, model.hidden))
    sizes = [*accumulate(rows * columns * model.dtype.itemsize for rows, columns in shapes)]
    sample = shapes[: max(1, bisect(sizes, most))]
    peak = {model.dtype: multiply_rate(name, model.dtype, repeats=3)}
    copied = copy_bandwidth(name, max(min(most, sizes[-1]) // 2, 1 << 16))
    read = product_bandwidth(name, model.dtype, batch, sample)
    source = f"measured in this run on {describe(name)}"
    return Device(name, copied, peak, source), Device(name, read, peak, source)


def kind(device: str) -> str:
    return device.partition(":")[0]


def describe(device: str) -> str:
    if kind(device) == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
