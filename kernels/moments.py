"""Sums per channel over the tokens of activations, from one read:  sum |x|,  sum x,  sum x^2.

What LLM-BIP, Wanda and FLAP weigh channels by. Reads every activation once (2 bytes in bfloat16) and
writes three floats a channel. Long sums are made of short ones, so that their error does not grow
with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.native import native
from compressor.kernels.token_rows import (
    BLOCK_CHANNELS,
    bytes_of,
    check_activations,
    check_mask,
    ranges,
    rows,
)
from compressor.kernels.triton_support import Variant, jit, on, tl

TOKENS = 256  # widened at a time by the reference
MOMENTS = ("absolute", "sum", "square")
# A program's block; its loads run STAGES - 1 blocks ahead of its sums.
TILE = {"BLOCK_TOKENS": 16, "BLOCK_CHANNELS": BLOCK_CHANNELS, "STAGES": 4}


def moments(
    x: torch.Tensor, mask: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Sums over the tokens of x [..., channels]; mask [...] is true where a token counts.

    Returns [3, channels] in the order of `MOMENTS`, float32 (float64 for x of that type). Tokens
    left out may hold anything. The result does not depend on the number of threads and repeats bit
    for bit. For more tokens than fit one call, add the results in float64.
    """
    return OP(x, mask, backend=backend)


def _ref(x, mask):
    total = torch.zeros(len(MOMENTS), x.shape[-1], dtype=torch.float64, device=x.device)
    for part in parts(x, mask):
        total += torch.stack((part.abs().sum(0), part.sum(0), part.square().sum(0)))
    return total.to(exact_dtype(x))


def parts(x: torch.Tensor, mask: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The counted tokens, a few at a time, so that no wide copy of all of x is made."""
    keep = None if mask is None or mask.all() else mask.flatten()
    for begin, part in enumerate(rows(x).split(TOKENS)):
        if keep is not None:
            part = part[keep[begin * TOKENS : (begin + 1) * TOKENS]]
        yield part.to(exact_dtype(x))


@jit
def _moments_kernel(
    x,  # [tokens, channels]
    mask,  # [tokens] uint8, or anything if not MASKED
    out,  # [ranges, 3, channels] float32
    tokens,
    channels,
    stride_token,
    each,
    MASKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tl.program_id(1).to(tl.int64) * each
    last = tl.minimum(first + each, tokens)
    absolute = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    square = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    for top in tl.range(first, last, BLOCK_TOKENS, num_stages=STAGES):
        token = top + tl.arange(0, BLOCK_TOKENS)
        counts = token < last
        if MASKED:
            counts = tl.load(mask + token, mask=counts, other=0) != 0
        inside = counts[:, None] & (channel < channels)[None, :]
        at = token[:, None] * stride_token + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        absolute += tl.abs(value)
        total += value
        square += value * value
    here = out + tl.program_id(1).to(tl.int64) * 3 * channels + channel
    tl.store(here, tl.sum(absolute, 0), mask=channel < channels)
    tl.store(here + channels, tl.sum(total, 0), mask=channel < channels)
    tl.store(here + 2 * channels, tl.sum(square, 0), mask=channel < channels)


def _triton(x, mask):
    x = rows(x)
    tokens, channels = x.shape
    if x.numel() == 0:
        return torch.zeros(3, channels, dtype=torch.float32, device=x.device)
    across, down, each = ranges(tokens, channels, TILE["BLOCK_TOKENS"])
    out = torch.empty(down, 3, channels, dtype=torch.float32, device=x.device)
    with on(x):
        _moments_kernel[(across, down)](
            x,
            x if mask is None else bytes_of(mask),
            out,
            tokens,
            channels,
            x.stride(0),
            each,
            MASKED=mask is not None,
            **TILE,
        )
    return out.sum(0)


def _ext(x, mask):
    x = rows(x)
    out = torch.empty(3, x.shape[1], dtype=torch.float32, device=x.device)
    native("moments", x.device, x, x.dtype, *x.shape, x.stride(0), bytes_of(mask), out)
    return out


def _fake(x, mask):
    return x.new_empty(3, x.shape[-1], dtype=exact_dtype(x))


def _check(x, mask):
    check_activations("moments", x=x)
    check_mask("moments", mask, x)


OP = Op(
    "moments(Tensor x, Tensor? mask) -> Tensor",
    check=_check,
    ref=_ref,
    fake=_fake,
    triton=_triton,
    ext=_ext,
    cpu="ext",
    cuda="triton",
)

VARIANTS = [
    Variant(
        _moments_kernel,
        {
            "x": f"*{dtype}:16",
            "mask": "*u8:16",
            "out": "*fp32:16",
            "tokens": "i32:16",
            "channels": "i32:16",
            "stride_token": "i32:16",
            "each": "i32:16",
        },
        {"MASKED": masked, **TILE},
        wide=("x",),
    )
    for dtype, masked in [("bf16", False), ("bf16", True), ("fp32", True)]
]
