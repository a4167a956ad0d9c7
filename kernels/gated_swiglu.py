"""Gates on the channels of a gated feed-forward layer, with the gradient that learned pruning needs.

    forward    h~ = h z,  h = phi(gate) up            z [channels]: 1 keeps a channel, 0 prunes it
    backward   dh = dh~ z,  dgate = dh up phi'(gate),  dup = dh phi(gate)
               dz_c = sum_t dh~_tc h_tc

dz takes h as it is before the gate, so a pruned channel still learns what its return is worth: BESA's
straight-through gradient (arXiv 2402.16880) on channels instead of weights. The backward pass computes
h anew. It reads dh~, gate and up once and writes dgate and dup, 10 bytes an element in bfloat16; dz
costs no traffic. The forward pass moves 6.
"""

from __future__ import annotations

import torch

from compressor.kernels.activations import ACTIVATIONS, FUNCTIONS, activate
from compressor.kernels.checks import check_choice
from compressor.kernels.dispatch import Op
from compressor.kernels.gradient import with_gradient
from compressor.kernels.token_rows import (
    BLOCK_CHANNELS,
    check_activations,
    check_gate,
    ranges,
    rows,
)
from compressor.kernels.triton_support import Variant, jit, on, tl, triton

TOKENS = 256  # widened at a time by the reference
# A program's block, forward and backward; there its loads run STAGES - 1 blocks ahead of its sums.
FORWARD_TOKENS = 16
FORWARD = {"BLOCK_TOKENS": FORWARD_TOKENS, "BLOCK_CHANNELS": BLOCK_CHANNELS}
TILE = {"BLOCK_TOKENS": 8, "BLOCK_CHANNELS": BLOCK_CHANNELS, "STAGES": 3}


def gated_swiglu(
    gate: torch.Tensor,
    up: torch.Tensor,
    z: torch.Tensor,
    activation: str = "silu",
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """gate, up [..., channels] and z [channels] -> phi(gate) * up * z [..., channels].

    z: float32 (float64 with inputs of that type), any numbers; rounded to the inputs' dtype, in which
    every multiplication is rounded. activation: a key of `ACTIVATIONS`. Differentiable once, in gate,
    up and z; dz is summed in float32 and repeats bit for bit. Tokens that no loss looks at, such as
    padding, have dh~ = 0 and add nothing to it, as long as their gate and up are finite.
    """
    return DIFFERENTIABLE(gate, up, z, activation, backend=backend)


def _ref(gate, up, z, activation):
    return FUNCTIONS[activation](gate).mul_(up).mul_(z.to(gate.dtype)).contiguous()


def _backward_ref(grad, gate, up, z, activation):
    factor = z.to(gate.dtype).to(z.dtype)
    d_gate, d_up, d_z = [], [], torch.zeros_like(z, dtype=torch.float64)
    for tensors in zip(*(rows(t).split(TOKENS) for t in (grad, gate, up)), strict=True):
        d, g, u = (t.to(z.dtype) for t in tensors)
        value, slope = ACTIVATIONS[activation](g)
        d_z += (d * value * u).sum(0)
        d = d * factor
        d_gate.append((d * u * slope).to(gate.dtype))
        d_up.append((d * value).to(gate.dtype))
    return torch.cat(d_gate).view(gate.shape), torch.cat(d_up).view(gate.shape), d_z.to(z.dtype)


@jit
def _gated_swiglu_kernel(
    gate,  # [tokens, channels]
    up,  # [tokens, channels]
    z,  # [channels] float32
    out,  # [tokens, channels]
    tokens,
    channels,
    stride_gate,
    stride_up,
    ACTIVATION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    # One axis: the others of a grid are too short for the blocks of a million tokens.
    across = tl.cdiv(channels, BLOCK_CHANNELS)
    top = (tl.program_id(0) // across).to(tl.int64) * BLOCK_TOKENS
    token = (top + tl.arange(0, BLOCK_TOKENS))[:, None]
    channel = tl.program_id(0) % across * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = channel[None, :]
    inside = (token < tokens) & (column < channels)
    kind = gate.dtype.element_ty
    factor = tl.load(z + channel, mask=channel < channels, other=0.0).to(kind).to(tl.float32)
    g = tl.load(gate + token * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + token * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    value, _ = activate(g, ACTIVATION, kind == tl.float32)
    h = (value.to(kind).to(tl.float32) * u).to(kind).to(tl.float32)
    tl.store(out + token * channels + column, (h * factor[None, :]).to(kind), mask=inside)


@jit
def _gated_swiglu_backward_kernel(
    grad,  # [tokens, channels], of h~
    gate,  # [tokens, channels]
    up,  # [tokens, channels]
    z,  # [channels] float32
    d_gate,  # [tokens, channels]
    d_up,  # [tokens, channels]
    d_z,  # [ranges, channels] float32
    tokens,
    channels,
    stride_grad,
    stride_gate,
    stride_up,
    each,
    ACTIVATION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = channel[None, :]
    first = tl.program_id(1).to(tl.int64) * each
    last = tl.minimum(first + each, tokens)
    kind = gate.dtype.element_ty
    factor = tl.load(z + channel, mask=channel < channels, other=0.0).to(kind).to(tl.float32)
    worth = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    for top in tl.range(first, last, BLOCK_TOKENS, num_stages=STAGES):
        token = (top + tl.arange(0, BLOCK_TOKENS))[:, None]
        inside = (token < last) & (column < channels)
        d = tl.load(grad + token * stride_grad + column, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate + token * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(up + token * stride_up + column, mask=inside, other=0.0).to(tl.float32)
        value, slope = activate(g, ACTIVATION, False)
        worth += d * value * u
        d = d * factor[None, :]
        at = token * channels + column
        tl.store(d_gate + at, (d * u * slope).to(kind), mask=inside)
        tl.store(d_up + at, (d * value).to(kind), mask=inside)
    here = d_z + tl.program_id(1).to(tl.int64) * channels + channel
    tl.store(here, tl.sum(worth, 0), mask=channel < channels)


def _triton(gate, up, z, activation):
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate, up, z = rows(gate), rows(up), z.float().contiguous()
    tokens, channels = gate.shape
    if out.numel():
        across, down = triton.cdiv(channels, BLOCK_CHANNELS), triton.cdiv(tokens, FORWARD_TOKENS)
        with on(gate):
            _gated_swiglu_kernel[(across * down,)](
                gate,
                up,
                z,
                out,
                tokens,
                channels,
                gate.stride(0),
                up.stride(0),
                ACTIVATION=activation,
                **FORWARD,
            )
    return out


def _backward_triton(grad, gate, up, z, activation):
    d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    d_up = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    grad, gate, up, z = rows(grad), rows(gate), rows(up), z.float().contiguous()
    tokens, channels = gate.shape
    if gate.numel() == 0:
        return d_gate, d_up, torch.zeros_like(z)
    across, down, each = ranges(tokens, channels, TILE["BLOCK_TOKENS"])
    d_z = torch.empty(down, channels, dtype=torch.float32, device=gate.device)
    with on(gate):
        _gated_swiglu_backward_kernel[(across, down)](
            grad,
            gate,
            up,
            z,
            d_gate,
            d_up,
            d_z,
            tokens,
            channels,
            grad.stride(0),
            gate.stride(0),
            up.stride(0),
            each,
            ACTIVATION=activation,
            **TILE,
        )
    return d_gate, d_up, d_z.sum(0)


def _check(gate, up, z, activation):
    check_activations("gated_swiglu", gate=gate, up=up)
    check_gate("gated_swiglu", z, gate)
    check_choice("gated_swiglu", "activation", activation, ACTIVATIONS)


def _backward_check(grad, gate, up, z, activation):
    _check(gate, up, z, activation)
    check_activations("gated_swiglu_backward", gate=gate, grad=grad)


OP = Op(
    "gated_swiglu(Tensor gate, Tensor up, Tensor z, str activation) -> Tensor",
    check=_check,
    ref=_ref,
    fake=lambda gate, up, z, activation: gate.new_empty(gate.shape),
    triton=_triton,
    cuda="triton",
)

BACKWARD = Op(
    "gated_swiglu_backward(Tensor grad, Tensor gate, Tensor up, Tensor z, str activation)"
    " -> (Tensor, Tensor, Tensor)",
    check=_backward_check,
    ref=_backward_ref,
    fake=lambda grad, gate, up, z, activation: (
        gate.new_empty(gate.shape),
        gate.new_empty(gate.shape),
        z.new_empty(z.shape),
    ),
    triton=_backward_triton,
    cuda="triton",
)

DIFFERENTIABLE = with_gradient(OP, BACKWARD, tensors=3)

_NUMBERS = dict.fromkeys(("tokens", "channels", "stride_gate", "stride_up"), "i32:16")
VARIANTS = [
    Variant(
        _gated_swiglu_kernel,
        dict.fromkeys(("gate", "up", "out"), f"*{dtype}:16") | {"z": "*fp32:16"} | _NUMBERS,
        {"ACTIVATION": activation, **FORWARD},
        wide=("gate", "up"),
    )
    for dtype, activation in [("bf16", "silu"), ("bf16", "gelu"), ("fp32", "silu")]
] + [
    Variant(
        _gated_swiglu_backward_kernel,
        dict.fromkeys(("grad", "gate", "up", "d_gate", "d_up"), f"*{dtype}:16")
        | {"z": "*fp32:16", "d_z": "*fp32:16", "stride_grad": "i32:16", "each": "i32:16"}
        | _NUMBERS,
        {"ACTIVATION": activation, **TILE},
        wide=("grad", "gate", "up"),
    )
    for dtype, activation in [("bf16", "silu"), ("bf16", "gelu"), ("fp32", "silu")]
]
