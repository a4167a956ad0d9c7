"""Timing and ceilings: how long a call takes, and how fast the machine can be at best."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from compressor.report import versions


def seconds(function: Callable, device: str, repeats: int = 7) -> float:
    """Median seconds of a call: by events and with a cold L2 on a GPU, by the clock on a CPU."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(function, warmup=50, rep=200, return_mode="median") / 1e3
    function()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read plus written, of a copy far larger than any cache."""
    source = torch.empty(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    source.random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def multiply_rate(device: str) -> float:
    """Float32 operations a second of a large matrix product, without reduced precision inside."""
    torch.set_float32_matmul_precision("highest")
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def machine(device: str) -> dict:
    """What a figure must be read with: device, versions, commit."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True)
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "device": name,
        "copy_bytes_per_second": copy_bandwidth(device),
        "float32_per_second": multiply_rate(device),
        "commit": found.stdout.strip() or None,
        "versions": versions() | triton_version(),
    }


def triton_version() -> dict:
    try:
        import triton
    except ImportError:
        return {}
    return {"triton": triton.__version__}
