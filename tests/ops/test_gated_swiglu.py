"""The gated feed-forward layer's gate: values, and gradients against autograd of the plain formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.activations import ACTIVATIONS, FUNCTIONS
from compressor.kernels.gated_swiglu import BACKWARD, OP, gated_swiglu

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (1, 1), (7, 3), (2, 5, 33), (0, 4), (4, 0), (65, 131)]


def inputs(shape, dtype=torch.float32, device="cpu"):
    """grad, gate, up, and a z that prunes some of the channels."""
    grad, gate, up = (2 * torch.randn(3, *shape, device=device)).to(dtype)
    z = (torch.rand(shape[-1], device=device) > 0.4).float()
    return grad, gate, up, z


def plain(gate, up, z, activation):
    return FUNCTIONS[activation](gate) * up * z


def assert_gradients(found, grad, gate, up, z, activation, interpreted=False):
    """Against autograd in float64. Every term may be off by 1e-6 of its factors, and by half an ulp
    of its dtype (a whole one where the interpreter truncates)."""
    dtype = gate.dtype
    grad, gate, up, z = (t.double().requires_grad_() for t in (grad, gate, up, z))
    expected = torch.autograd.grad(plain(gate, up, z, activation), (gate, up, z), grad)
    value, slope = ACTIVATIONS[activation](gate)
    ulp = torch.finfo(dtype).eps * (1 if interpreted else 0.5)
    sizes = (grad * up * z * (slope.abs() + 1), grad * z * (value.abs() + gate.abs()))
    for d, right, size in zip(found, expected, sizes, strict=False):
        assert (d.dtype, d.shape) == (dtype, right.shape)
        least = torch.finfo(dtype).smallest_normal * ulp  # half the step of subnormals
        assert ((d - right).abs() <= 1e-6 * size.abs() + 1.01 * ulp * right.abs() + least).all()
    tokens = tuple(range(gate.dim() - 1))
    size = (grad * up * (value.abs() + gate.abs())).abs()
    assert found[2].dtype == torch.float32
    assert ((found[2] - expected[2]).abs() <= 1e-6 * (size.sum(tokens) if tokens else size)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_autograd_in_float64(device, backend, shape, dtype, activation):
    tensors = inputs(shape, dtype, device)
    found = BACKWARD(*tensors, activation, backend=backend)
    assert_gradients(found, *tensors, activation, (device, backend) == ("cpu", "triton"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values(device, backend, dtype, activation):
    _, gate, up, z = inputs((65, 131), dtype, device)
    found = gated_swiglu(gate, up, z, activation, backend=backend)
    expected = plain(gate, up, z.to(dtype), activation)
    if (device, backend) == ("cpu", "triton"):
        # The interpreter truncates to bfloat16, and neither its exponential nor its erf is torch's.
        rtol = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=rtol, atol=5e-6)
    else:
        assert torch.equal(found, expected)
    assert found[:, z == 0].count_nonzero() == 0


@given(tokens=st.integers(0, 60), channels=st.integers(1, 150))
@settings(max_examples=10, deadline=None)
def test_any_shape(device, backend, tokens, channels):
    tensors = inputs((tokens, channels), device=device)
    assert_gradients(BACKWARD(*tensors, "silu", backend=backend), *tensors, "silu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_gradcheck(activation, forced):
    gate, up = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    z = torch.tensor([1.0, 0.0, 0.3, -1.2, 1.0], dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (gate, up, z)]
    assert torch.autograd.gradcheck(
        lambda *t: gated_swiglu(*t, activation, backend=forced), tensors
    )


def test_a_layer_trains_through_it(device, backend):
    """The gradients reach what comes before gate and up, as they do through the plain formula."""
    x = torch.randn(6, 5, device=device)
    weights = torch.randn(2, 5, 7, device=device, requires_grad=True)
    z = torch.ones(7, device=device, requires_grad=True)
    found, expected = (
        torch.autograd.grad(f(x @ weights[0], x @ weights[1]).square().sum(), (weights, z))
        for f in (
            lambda gate, up: gated_swiglu(gate, up, z, backend=backend),
            lambda gate, up: plain(gate, up, z, "silu"),
        )
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_pruned_channel_learns_what_its_return_is_worth(device, backend):
    grad, gate, up, _ = inputs((40, 6), device=device)
    z = torch.zeros(6, device=device)
    d_gate, d_up, d_z = BACKWARD(grad, gate, up, z, "silu", backend=backend)
    assert d_gate.count_nonzero() == d_up.count_nonzero() == 0
    h = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(d_z, (grad * h).sum(0), rtol=1e-5, atol=1e-4)
    assert (d_z != 0).all()


def test_padding_without_a_gradient_adds_nothing(device, backend):
    grad, gate, up, z = inputs((2, 6, 5), device=device)
    grad[0, 3:] = 0
    found = BACKWARD(grad, gate, up, z, "silu", backend=backend)[2]
    parts = [(t[0, :3], t[1]) for t in (grad, gate, up)]
    apart = [
        BACKWARD(*(p[i] for p in parts), z, "silu", backend=backend)[2].double() for i in (0, 1)
    ]
    torch.testing.assert_close(found.double(), sum(apart), rtol=1e-5, atol=1e-5)


def test_views(device, backend):
    grad, gate, up, z = inputs((6, 9), device=device)
    strided = torch.stack((z, z), 1)[:, 0]
    expected = BACKWARD(grad, gate, up, z, "silu", backend=backend)
    views = grad.T.contiguous().T, gate.T.contiguous().T, torch.cat((up, up), 1)[:, :9]
    found = BACKWARD(*views, strided, "silu", backend=backend)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    everywhere = grad[0, 0].expand(6, 9)  # what the gradient of a sum looks like
    found = BACKWARD(everywhere, gate, up, z, "silu", backend=backend)
    for a, b in zip(
        found, BACKWARD(everywhere.contiguous(), gate, up, z, "silu", backend=backend), strict=True
    ):
        assert torch.equal(a, b)
    values = gated_swiglu(*views[1:], strided, backend=backend)
    # On a CPU torch's own exponential differs in the last bit between layouts.
    torch.testing.assert_close(values, gated_swiglu(gate, up, z, backend=backend))


def test_repeats_bit_for_bit(device, backend):
    tensors = inputs((100, 130), torch.bfloat16, device)
    first, second = (BACKWARD(*tensors, "silu", backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_registration():
    _, gate, up, z = inputs((2, 4, 3))
    tensors = [t.requires_grad_() for t in (gate, up, z)]
    torch.library.opcheck(OP.overload, (*tensors, "silu"))
    torch.library.opcheck(BACKWARD.overload, (*inputs((2, 4, 3)), "silu"))


def test_compiles_without_a_break():
    _, gate, up, z = inputs((5, 4))
    z.requires_grad_()
    compiled = torch.compile(
        lambda *t: gated_swiglu(*t).square().sum(), backend="aot_eager", fullgraph=True
    )
    (found,) = torch.autograd.grad(compiled(gate, up, z), z)
    (expected,) = torch.autograd.grad(plain(gate, up, z, "silu").square().sum(), z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


SQUARE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SQUARE, torch.zeros(2, 3), torch.ones(2)), r"up has shape \[2, 3\]; it must be \[2, 2\]"),
        ((SQUARE, SQUARE, torch.ones(3)), r"z has shape \[3\]; it must be \[2\]"),
        ((SQUARE, SQUARE, torch.ones(2).bool()), "z is torch.bool; it must be one of float32"),
        ((SQUARE, SQUARE, torch.ones(2), "relu2"), "activation is 'relu2'"),
        ((SQUARE.double(), SQUARE.double(), torch.ones(2)), "z is torch.float32"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        gated_swiglu(*arguments, backend=forced)
