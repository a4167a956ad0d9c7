"""Triton, or the reason why it is missing. Kernel files import `triton`, `tl` and `jit` from here.

Kernel files begin with `from __future__ import annotations`, so `tl.constexpr` in a signature is
not looked up where there is no Triton.
"""

import os
from contextlib import nullcontext

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
    if MISSING is None and device_type == "cpu" and not INTERPRETED:
        return "Triton runs on a CPU only in its interpreter (TRITON_INTERPRET=1)"
    return MISSING


def on(tensor: torch.Tensor):
    """Context in which a launch goes to the tensor's device, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
