"""Triton, or the reason why it is missing. Kernel files import `triton`, `tl` and `jit` from here.

Kernel files begin with `from __future__ import annotations`, so `tl.constexpr` in a signature is
not looked up where there is no Triton.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit

    MISSING = None
except ImportError as error:
    triton = tl = None
    MISSING = f"Triton cannot be imported ({error})"

    def jit(function):
        return function


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def missing(device_type: str) -> str | None:
    """Why no Triton kernel can run on such a device; None if one can."""
    if device_type not in ("cpu", "cuda"):
        return "its kernels are for CUDA and, in the interpreter, CPU"
    if MISSING is None and device_type == "cpu" and not INTERPRETED:
        return "Triton runs on a CPU only in its interpreter (TRITON_INTERPRET=1)"
    return MISSING


def on(tensor: torch.Tensor):
    """Context in which a launch goes to the tensor's device, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel that `compressor.kernels.aot` makes without a GPU.

    A kernel file ends with the list `VARIANTS`: the few compilations that real calls lead to most.
    Every kernel whose name ends in `_kernel` needs one; other @jit functions are helpers of these.
        VARIANTS = [
            Variant(
                _scale_kernel,
                {"weight": f"*{dtype}:16", "out": "*fp32:16", "columns": "i32:16", "factor": "fp32"},
                {"stride": 1, "BLOCK": 1024},
                wide=("weight",),
            )
            for dtype in ("bf16", "fp32")
        ]

    types:     argument -> pointer or number in Triton's words; `:16` where the address or the
               number is a multiple of 16, as Triton finds it at a launch with usual shapes.
    constants: argument -> value, for every constexpr, and for numbers that are 1 and pointers that
               are None at a launch, which Triton makes constant too.
    wide:      pointers that must be read 16 bytes at a time. A load counts for the pointer that
               stands first in it: `tl.load(weight + offset)`.
    """

    kernel: Callable
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int = 4  # this and the next are Triton's defaults at a launch
    num_stages: int = 3
    wide: tuple[str, ...] = ()

    def __str__(self):
        pointers = (t.strip("*").partition(":")[0] for t in self.types.values() if t[0] == "*")
        named = (f"{name}={value}" for name, value in self.constants.items() if name.isupper())
        return f"{self.kernel.__name__} {'/'.join(pointers)} {' '.join(named)}"
