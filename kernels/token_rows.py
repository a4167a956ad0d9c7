"""Activations [..., channels] as rows of tokens, and how kernels divide them among programs.

A program of a Triton kernel sums one block of channels over one range of tokens. Its sums are a row
of [ranges, sums, channels], which are added in a fixed order afterwards: no atomics, so a result
repeats bit for bit.
"""

import math

import torch

from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import exact_dtype
from compressor.kernels.native import in_rows
from compressor.kernels.triton_support import triton

BLOCK_CHANNELS = 128  # 16-byte loads of bfloat16 by 16 threads a token
PROGRAMS = 1024  # about eight for each multiprocessor of the largest device
# A range's tokens at most. Short: the last programs to finish leave little of the device idle, and an
# accumulator sees few additions.
LONGEST = 1024
MOST_RANGES = 65_535  # what the second axis of a CUDA grid may have


def rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., channels] as [tokens, channels] whose channels are neighbours; a view where it can be."""
    return in_rows(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))


def bytes_of(mask: torch.Tensor | None) -> torch.Tensor | None:
    """mask [...] of bool as [tokens] of 0 and 1 in memory of its own kind."""
    return None if mask is None else mask.reshape(-1).contiguous().view(torch.uint8)


def ranges(tokens: int, channels: int, block_tokens: int) -> tuple[int, int, int]:
    """(blocks of channels, ranges of tokens, tokens a range): the grid of a launch."""
    across = triton.cdiv(channels, BLOCK_CHANNELS)
    wanted = max(triton.cdiv(PROGRAMS, across), triton.cdiv(tokens, LONGEST))
    wanted = min(wanted, MOST_RANGES)
    each = triton.cdiv(triton.cdiv(tokens, wanted), block_tokens) * block_tokens
    return across, triton.cdiv(tokens, each), each


def check_activations(op: str, **tensors: torch.Tensor) -> None:
    """All [..., channels], of one shape, dtype and device."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        check_tensor(op, name, tensor)
        if tensor.dim() == 0:
            raise ValueError(f"{op}: {name} has shape []; it must be [..., channels].")
        check_tensor(op, name, tensor, (first.dtype,), tuple(first.shape), first.device)


def check_mask(op: str, mask: torch.Tensor | None, x: torch.Tensor) -> None:
    """None, or one bool a token."""
    if mask is not None:
        check_tensor(op, "mask", mask, (torch.bool,), tuple(x.shape[:-1]), x.device)


def check_gate(op: str, z: torch.Tensor, x: torch.Tensor, group: int = 1) -> None:
    """One number for every `group` channels of x, float32, or float64 with x."""
    check_tensor(op, "z", z, (exact_dtype(x),), (x.shape[-1] // group,), x.device)
