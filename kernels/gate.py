"""Gates on groups of channels of a tensor, with the gradient that learned pruning needs.

    forward    x~ = x z          z [groups]: 1 keeps a group of channels, 0 prunes it
    backward   dx = dx~ z,       dz_g = sum over the tokens and the group's channels of dx~ x

For the heads of a KV group before o_proj, as `gated_swiglu` is for the inner channels of the
feed-forward layer: a pruned group still gets its gradient (BESA's straight-through, arXiv 2402.16880).
The forward pass is one multiplication of torch's; the backward pass reads dx~ and x once and writes
dx, 6 bytes an element in bfloat16.
"""

from __future__ import annotations

import torch

from compressor.kernels.dispatch import Op
from compressor.kernels.gradient import with_gradient
from compressor.kernels.token_rows import (
    BLOCK_CHANNELS,
    check_activations,
    check_gate,
    ranges,
    rows,
)
from compressor.kernels.triton_support import Variant, jit, on, tl

TOKENS = 256  # widened at a time by the reference
# A program's block; its loads run STAGES - 1 blocks ahead of its sums.
TILE = {"BLOCK_TOKENS": 16, "BLOCK_CHANNELS": BLOCK_CHANNELS, "STAGES": 3}


def gated(
    x: torch.Tensor, z: torch.Tensor, group: int = 1, *, backend: str | None = None
) -> torch.Tensor:
    """x [..., channels] times z [channels / group], each for `group` neighbouring channels.

    z: float32 (float64 for x of that type), any numbers, rounded to x's dtype. Differentiable once,
    in both; dz is summed in float32 and repeats bit for bit. Tokens that no loss looks at, such as
    padding, have dx~ = 0 and add nothing to it, as long as their x is finite.
    """
    return DIFFERENTIABLE(x, z, group, backend=backend)


def _ref(x, z, group):
    return (x * z.to(x.dtype).repeat_interleave(group)).contiguous()


def _backward_ref(grad, x, z, group):
    d_z = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    for d, value in zip(rows(grad).split(TOKENS), rows(x).split(TOKENS), strict=True):
        d_z += (d.to(z.dtype) * value.to(z.dtype)).sum(0)
    return _ref(grad, z, group), d_z.view(-1, group).sum(1).to(z.dtype)


@jit
def _gated_backward_kernel(
    grad,  # [tokens, channels], of x~
    x,  # [tokens, channels]
    z,  # [channels] float32
    d_x,  # [tokens, channels]
    d_z,  # [ranges, channels] float32
    tokens,
    channels,
    stride_grad,
    stride_x,
    each,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = channel[None, :]
    first = tl.program_id(1).to(tl.int64) * each
    last = tl.minimum(first + each, tokens)
    kind = x.dtype.element_ty
    factor = tl.load(z + channel, mask=channel < channels, other=0.0).to(kind).to(tl.float32)
    worth = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    for top in tl.range(first, last, BLOCK_TOKENS, num_stages=STAGES):
        token = (top + tl.arange(0, BLOCK_TOKENS))[:, None]
        inside = (token < last) & (column < channels)
        d = tl.load(grad + token * stride_grad + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + token * stride_x + column, mask=inside, other=0.0).to(tl.float32)
        worth += d * value
        tl.store(d_x + token * channels + column, (d * factor[None, :]).to(kind), mask=inside)
    here = d_z + tl.program_id(1).to(tl.int64) * channels + channel
    tl.store(here, tl.sum(worth, 0), mask=channel < channels)


def _backward_triton(grad, x, z, group):
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return d_x, torch.zeros_like(z)
    grad, x = rows(grad), rows(x)
    tokens, channels = x.shape
    across, down, each = ranges(tokens, channels, TILE["BLOCK_TOKENS"])
    d_z = torch.empty(down, channels, dtype=torch.float32, device=x.device)
    with on(x):
        _gated_backward_kernel[(across, down)](
            grad,
            x,
            z.float().repeat_interleave(group),
            d_x,
            d_z,
            tokens,
            channels,
            grad.stride(0),
            x.stride(0),
            each,
            **TILE,
        )
    return d_x, d_z.sum(0).view(-1, group).sum(1)


def _check(x, z, group):
    check_activations("gated", x=x)
    if group < 1 or x.shape[-1] % group:
        raise ValueError(f"gated: group is {group}; it must divide x's {x.shape[-1]} channels.")
    check_gate("gated", z, x, group)


def _backward_check(grad, x, z, group):
    _check(x, z, group)
    check_activations("gated_backward", x=x, grad=grad)


OP = Op(
    "gated(Tensor x, Tensor z, int group) -> Tensor",
    check=_check,
    ref=_ref,
    fake=lambda x, z, group: x.new_empty(x.shape),
)

BACKWARD = Op(
    "gated_backward(Tensor grad, Tensor x, Tensor z, int group) -> (Tensor, Tensor)",
    check=_backward_check,
    ref=_backward_ref,
    fake=lambda grad, x, z, group: (x.new_empty(x.shape), z.new_empty(z.shape)),
    triton=_backward_triton,
    cuda="triton",
)

DIFFERENTIABLE = with_gradient(OP, BACKWARD, tensors=2)

VARIANTS = [
    Variant(
        _gated_backward_kernel,
        dict.fromkeys(("grad", "x", "d_x"), f"*{dtype}:16")
        | dict.fromkeys(("z", "d_z"), "*fp32:16")
        | dict.fromkeys(("tokens", "channels", "stride_grad", "stride_x", "each"), "i32:16"),
        TILE,
        wide=("grad", "x"),
    )
    for dtype in ("bf16", "fp32")
]
