"""Gates on groups of channels: values, and gradients against autograd of the plain formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.gate import BACKWARD, gated
from compressor.kernels.gate import OP as FORWARD

OP = BACKWARD  # whose backends the tests run on: the forward pass is torch's alone
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def inputs(tokens, groups, group, dtype=torch.float32, device="cpu"):
    grad, x = torch.randn(2, *tokens, groups * group, device=device).to(dtype)
    return grad, x, (torch.rand(groups, device=device) > 0.4).float()


def plain(x, z, group):
    return x * z.repeat_interleave(group)


def assert_gradients(found, grad, x, z, group, interpreted=False):
    dtype = x.dtype
    grad, x, z = (t.double().requires_grad_() for t in (grad, x, z))
    d_x, d_z = torch.autograd.grad(plain(x, z, group), (x, z), grad)
    assert [f.dtype for f in found] == [dtype, torch.float32]
    assert torch.equal(found[0].double(), d_x)  # z is 0 or 1
    size = (grad * x).abs().view(-1, len(z), group).sum((0, 2))
    assert ((found[1] - d_z).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("tokens", [(), (1,), (7,), (2, 5), (0,), (65,)], ids=str)
@pytest.mark.parametrize(("groups", "group"), [(1, 1), (3, 4), (2, 64), (131, 1)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_equal_autograd_in_float64(device, backend, tokens, groups, group, dtype):
    grad, x, z = inputs(tokens, groups, group, dtype, device)
    assert_gradients(BACKWARD(grad, x, z, group, backend=backend), grad, x, z, group)


@given(tokens=st.integers(0, 60), groups=st.integers(1, 40), group=st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_any_shape(device, backend, tokens, groups, group):
    grad, x, z = inputs((tokens,), groups, group, device=device)
    assert_gradients(BACKWARD(grad, x, z, group, backend=backend), grad, x, z, group)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values(dtype):
    _, x, z = inputs((2, 5), 3, 4, dtype)
    for forced in (None, "ref"):
        assert torch.equal(gated(x, z, 4, backend=forced), plain(x, z.to(dtype), 4))


@pytest.mark.parametrize("forced", [None, "ref"])
def test_gradcheck(forced):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, z: gated(x, z, 3, backend=forced), (x, z))


def test_a_forward_backend_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"gated has no triton implementation. Available: ref\."):
        gated(torch.zeros(2, 2), torch.ones(2), backend="triton")


def test_a_pruned_group_still_gets_its_gradient(device, backend):
    grad, x, _ = inputs((30,), 2, 4, device=device)
    d_x, d_z = BACKWARD(grad, x, torch.zeros(2, device=device), 4, backend=backend)
    assert d_x.count_nonzero() == 0
    torch.testing.assert_close(d_z, (grad * x).view(30, 2, 4).sum((0, 2)), rtol=1e-5, atol=1e-4)


def test_views(device, backend):
    grad, x, z = inputs((6,), 9, 1, device=device)
    expected = BACKWARD(grad, x, z, 1, backend=backend)
    views = grad.T.contiguous().T, torch.cat((x, x), 1)[:, :9], torch.stack((z, z), 1)[:, 0]
    for a, b in zip(BACKWARD(*views, 1, backend=backend), expected, strict=True):
        assert torch.equal(a, b)


def test_repeats_bit_for_bit(device, backend):
    tensors = inputs((100,), 26, 5, torch.bfloat16, device)
    first, second = (BACKWARD(*tensors, 5, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_registration():
    grad, x, z = inputs((2, 4), 3, 2)
    torch.library.opcheck(FORWARD.overload, (x.requires_grad_(), z.requires_grad_(), 2))
    torch.library.opcheck(BACKWARD.overload, (grad, x.detach(), z.detach(), 2))


def test_compiles_without_a_break():
    _, x, z = inputs((5,), 2, 3)
    z.requires_grad_()
    compiled = torch.compile(
        lambda x, z: gated(x, z, 3).square().sum(), backend="aot_eager", fullgraph=True
    )
    (found,) = torch.autograd.grad(compiled(x, z), z)
    (expected,) = torch.autograd.grad(plain(x, z, 3).square().sum(), z)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 6), torch.ones(2), 4), "group is 4; it must divide x's 6 channels"),
        ((torch.zeros(2, 6), torch.ones(2), 0), "group is 0"),
        ((torch.zeros(2, 6), torch.ones(2), 2), r"z has shape \[2\]; it must be \[3\]"),
        ((torch.zeros(2, 6).half(), torch.ones(3).half(), 2), "z is torch.float16"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        gated(*arguments, backend=forced)
