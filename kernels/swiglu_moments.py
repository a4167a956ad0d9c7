"""A gated feed-forward layer's inner activations h = phi(gate) * up, and what methods ask about them.

    moments   sum |h|,  sum h,  sum h^2
    gated     sum |phi(g)|,  sum |u|,  sum phi(g)^2,  sum (u phi'(g))^2

over the tokens, per channel. The second are the factors by which a change of the layer's input passes
through phi(g) * u (the product rule), as LLM-BIP's modes for gated layers need them. One read of gate
and up (4 bytes an element in bfloat16) and, if h is wanted, one write of it (2 bytes): with the
multiplication that a model makes anyway the sums cost no traffic.
"""

from __future__ import annotations

import torch

from compressor.kernels.activations import ACTIVATIONS, FUNCTIONS, activate
from compressor.kernels.checks import check_choice
from compressor.kernels.dispatch import Op, exact_dtype
from compressor.kernels.moments import MOMENTS, parts
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

GATED_MOMENTS = ("activated", "up", "activated_square", "slope_square")
SUMS = len(MOMENTS) + len(GATED_MOMENTS)
# A program's block; its loads run STAGES - 1 blocks ahead of its sums.
TILE = {"BLOCK_TOKENS": 8, "BLOCK_CHANNELS": BLOCK_CHANNELS, "STAGES": 3}


def swiglu_moments(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str = "silu",
    mask: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate, up [..., channels], mask [...] true where a token counts -> (h, moments, gated).

    activation: a key of `ACTIVATIONS`. h [..., channels], of every token, is phi(gate) rounded to the
    dtype, times up, rounded again: bit for bit what `phi(gate) * up` gives in torch on that device, but
    that Triton's phi of 16-bit inputs may be a few units in the last place of a float32 off before it
    is rounded, which changes one h in thousands by its last place.
    moments [3, channels] of h as rounded and gated [4, channels] in the order of `GATED_MOMENTS` are
    float32 (float64 for inputs of that type). Deterministic, as `moments`.
    """
    h, sums = OP(gate, up, activation, mask, True, backend=backend)
    return h, sums[: len(MOMENTS)], sums[len(MOMENTS) :]


def gated_moments(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str = "silu",
    mask: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The (moments, gated) of `swiglu_moments`, without writing h.

    Their h is rounded as the model's, but its phi may differ in the last place before it is.
    """
    _, sums = OP(gate, up, activation, mask, False, backend=backend)
    return sums[: len(MOMENTS)], sums[len(MOMENTS) :]


def _ref(gate, up, activation, mask, product):
    total = torch.zeros(SUMS, up.shape[-1], dtype=torch.float64, device=up.device)
    for g, u in zip(parts(gate, mask), parts(up, mask), strict=True):
        value, slope = ACTIVATIONS[activation](g)
        h = (value.to(up.dtype) * u.to(up.dtype)).to(u.dtype)
        through = slope * u
        sums = h.abs(), h, h.square(), value.abs(), u.abs(), value.square(), through.square()
        total += torch.stack([s.sum(0) for s in sums])
    return _product(gate, up, activation, product), total.to(exact_dtype(up))


def _product(gate, up, activation, wanted):
    return FUNCTIONS[activation](gate).mul_(up).contiguous() if wanted else gate.new_empty(0)


@jit
def _swiglu_moments_kernel(
    gate,  # [tokens, channels]
    up,  # [tokens, channels]
    mask,  # [tokens] uint8, or anything if not MASKED
    h,  # [tokens, channels], or anything if not PRODUCT
    out,  # [ranges, 7, channels] float32
    tokens,
    channels,
    stride_gate,
    stride_up,
    each,
    ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr,
    PRODUCT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tl.program_id(1).to(tl.int64) * each
    last = tl.minimum(first + each, tokens)
    h_absolute = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    h_total = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    h_square = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    activated = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    up_absolute = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    activated_square = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    slope_square = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
    for top in tl.range(first, last, BLOCK_TOKENS, num_stages=STAGES):
        token = top + tl.arange(0, BLOCK_TOKENS)
        row = token[:, None]
        column = channel[None, :]
        inside = (row < last) & (column < channels)
        counts = token < last
        if MASKED:
            counts = tl.load(mask + token, mask=counts, other=0) != 0
        wanted = inside if PRODUCT else inside & counts[:, None]
        g = tl.load(gate + row * stride_gate + column, mask=wanted, other=0.0).to(tl.float32)
        u = tl.load(up + row * stride_up + column, mask=wanted, other=0.0).to(tl.float32)
        value, slope = activate(g, ACTIVATION, PRODUCT and gate.dtype.element_ty == tl.float32)
        rounded = value.to(gate.dtype.element_ty).to(tl.float32)
        product = (rounded * u).to(gate.dtype.element_ty)
        if PRODUCT:
            tl.store(h + row * channels + column, product, mask=inside)
        product = product.to(tl.float32)
        through = slope * u
        if MASKED and PRODUCT:
            product = tl.where(counts[:, None], product, 0.0)
            value = tl.where(counts[:, None], value, 0.0)
            u = tl.where(counts[:, None], u, 0.0)
            through = tl.where(counts[:, None], through, 0.0)
        h_absolute += tl.abs(product)
        h_total += product
        h_square += product * product
        activated += tl.abs(value)
        up_absolute += tl.abs(u)
        activated_square += value * value
        slope_square += through * through
    here = out + tl.program_id(1).to(tl.int64) * 7 * channels + channel
    present = channel < channels
    tl.store(here, tl.sum(h_absolute, 0), mask=present)
    tl.store(here + channels, tl.sum(h_total, 0), mask=present)
    tl.store(here + 2 * channels, tl.sum(h_square, 0), mask=present)
    tl.store(here + 3 * channels, tl.sum(activated, 0), mask=present)
    tl.store(here + 4 * channels, tl.sum(up_absolute, 0), mask=present)
    tl.store(here + 5 * channels, tl.sum(activated_square, 0), mask=present)
    tl.store(here + 6 * channels, tl.sum(slope_square, 0), mask=present)


def _triton(gate, up, activation, mask, product):
    h = torch.empty(gate.shape if product else 0, dtype=gate.dtype, device=gate.device)
    gate, up = rows(gate), rows(up)
    tokens, channels = gate.shape
    if gate.numel() == 0:
        return h, torch.zeros(SUMS, channels, dtype=torch.float32, device=gate.device)
    across, down, each = ranges(tokens, channels, TILE["BLOCK_TOKENS"])
    out = torch.empty(down, SUMS, channels, dtype=torch.float32, device=gate.device)
    with on(gate):
        _swiglu_moments_kernel[(across, down)](
            gate,
            up,
            gate if mask is None else bytes_of(mask),
            h if product else gate,
            out,
            tokens,
            channels,
            gate.stride(0),
            up.stride(0),
            each,
            ACTIVATION=activation,
            MASKED=mask is not None,
            PRODUCT=product,
            **TILE,
        )
    return h, out.sum(0)


def _ext(gate, up, activation, mask, product):
    # h by torch itself: its exponential differs from one processor to the next.
    h = _product(gate, up, activation, product)
    gate, up = rows(gate), rows(up)
    out = torch.empty(SUMS, gate.shape[1], dtype=torch.float32, device=gate.device)
    inputs = gate, gate.stride(0), up, up.stride(0), gate.dtype, *gate.shape, bytes_of(mask)
    code = [*ACTIVATIONS].index(activation)  # as in csrc/ops.h
    native("swiglu_moments", gate.device, *inputs, code, out)
    return h, out


def _fake(gate, up, activation, mask, product):
    h = gate.new_empty(gate.shape if product else 0)
    return h, gate.new_empty(SUMS, gate.shape[-1], dtype=exact_dtype(gate))


def _check(gate, up, activation, mask, product):
    check_activations("swiglu_moments", gate=gate, up=up)
    check_choice("swiglu_moments", "activation", activation, ACTIVATIONS)
    check_mask("swiglu_moments", mask, gate)


OP = Op(
    "swiglu_moments(Tensor gate, Tensor up, str activation, Tensor? mask, bool product)"
    " -> (Tensor, Tensor)",
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
        _swiglu_moments_kernel,
        {
            "gate": f"*{dtype}:16",
            "up": f"*{dtype}:16",
            "mask": "*u8:16",
            "h": f"*{dtype}:16",
            "out": "*fp32:16",
            "tokens": "i32:16",
            "channels": "i32:16",
            "stride_gate": "i32:16",
            "stride_up": "i32:16",
            "each": "i32:16",
        },
        {"ACTIVATION": activation, "MASKED": masked, "PRODUCT": product, **TILE},
        wide=("gate", "up"),
    )
    for dtype, activation, masked, product in [
        ("bf16", "silu", True, True),
        ("bf16", "silu", False, True),
        ("bf16", "silu", True, False),
        ("bf16", "gelu", True, True),
        ("fp32", "silu", True, True),
    ]
]
