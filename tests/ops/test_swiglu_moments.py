"""h = phi(gate) * up and its sums: torch's own product, sums against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.activations import ACTIVATIONS, FUNCTIONS
from compressor.kernels.swiglu_moments import OP, gated_moments, swiglu_moments

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
OVERFLOWS = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter


def exact(gate, up, activation, mask=None):
    """The seven sums in float64, of h as torch rounds it; and the sizes that errors are relative to."""
    h = FUNCTIONS[activation](gate) * up
    gate, up, h = (
        (t.reshape(t.shape[:-1].numel(), t.shape[-1]) if mask is None else t[mask]).double()
        for t in (gate, up, h)
    )
    value, slope = ACTIVATIONS[activation](gate)
    terms = h.abs(), h, h**2, value.abs(), up.abs(), value**2, (up * slope) ** 2
    # h may cancel in a sum, phi' in itself.
    sizes = h.abs(), h.abs(), h**2, value.abs(), up.abs(), value**2, (up * (slope.abs() + 0.1)) ** 2
    return torch.stack([t.sum(0) for t in terms]), torch.stack([t.sum(0) for t in sizes])


def assert_right(sums, expected, interpreted=False, dtype=torch.float32):
    found = torch.cat(sums).double()
    expected, sizes = expected
    assert found.shape == expected.shape
    # Another exponential than torch's (2e-7), squared; sums in float32.
    bound = 5e-6 * sizes + 1e-30
    # Where that moves h over a rounding boundary, one of its terms changes by an ulp of its dtype.
    # The interpreter truncates where hardware rounds, twice in a product.
    ulps = 8 if interpreted else 2
    bound[:3] += ulps * (0 if dtype == torch.float32 else torch.finfo(dtype).eps) * sizes[:3]
    assert ((found - expected).abs() <= bound).all()


def is_interpreted(device, backend):
    return (device, backend) == ("cpu", "triton")


def inputs(shape, dtype=torch.float32, device="cpu"):
    return (2 * torch.randn(2, *shape, device=device)).to(dtype).unbind()


@pytest.mark.parametrize(
    "shape",
    [(1,), (1, 1), (7, 3), (2, 5, 33), (0, 4), (4, 0), (65, 131)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_float64(device, backend, shape, dtype, masked, activation):
    gate, up = inputs(shape, dtype, device)
    mask = torch.rand(shape[:-1], device=device) > 0.4 if masked else None
    expected = exact(gate, up, activation, mask)
    h, *sums = swiglu_moments(gate, up, activation, mask, backend=backend)
    assert all(s.dtype == torch.float32 for s in sums)
    assert_right(sums, expected, is_interpreted(device, backend), dtype)
    sums = gated_moments(gate, up, activation, mask, backend=backend)
    assert_right(sums, expected, is_interpreted(device, backend), dtype)
    assert (h.shape, h.dtype, h.device) == (gate.shape, gate.dtype, gate.device)


@OVERFLOWS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_h_is_that_of_torch_for_every_gate(device, backend, dtype, activation):
    gate = torch.arange(65536, device=device).to(torch.int16).view(dtype).view(256, 256)
    up = torch.randn(256, 256, device=device).to(dtype)
    found = swiglu_moments(gate, up, activation, backend=backend)[0]
    expected = FUNCTIONS[activation](gate) * up
    if backend == "triton":
        # Its phi is right to 1e-5 before it is rounded, but the interpreter truncates to bfloat16.
        finite = expected.isfinite() & (expected.abs() > 1e-3)
        rtol = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(found[finite], expected[finite], rtol=rtol, atol=0)
        others = (found[finite] != expected[finite]).double().mean()
        assert is_interpreted(device, backend) or others < 0.01
    else:
        numbers = ~expected.isnan()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_h_has_the_bits_of_torch_in_float32(device, backend, activation):
    gate, up = inputs((100, 257), device=device)
    found = swiglu_moments(gate, up, activation, backend=backend)[0]
    expected = FUNCTIONS[activation](gate) * up
    if is_interpreted(device, backend):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)
    else:
        assert torch.equal(found, expected)


@given(tokens=st.integers(0, 80), channels=st.integers(0, 150), masked=st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_shape(device, backend, tokens, channels, masked):
    gate, up = inputs((tokens, channels), device=device)
    mask = torch.rand(tokens, device=device) > 0.5 if masked else None
    found = gated_moments(gate, up, "silu", mask, backend=backend)
    assert_right(found, exact(gate, up, "silu", mask))


def test_tokens_left_out_add_nothing_but_get_their_h(device, backend):
    gate, up = inputs((2, 6, 5), device=device)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], device=device).bool()
    gate[0, 3], up[0, 4] = torch.nan, torch.inf
    expected = exact(gate, up, "silu", mask)
    h, *sums = swiglu_moments(gate, up, "silu", mask, backend=backend)
    assert_right(sums, expected)
    assert_right(gated_moments(gate, up, "silu", mask, backend=backend), expected)
    torch.testing.assert_close(
        h, torch.nn.functional.silu(gate) * up, equal_nan=True, rtol=1e-5, atol=1e-6
    )


def test_not_a_number_stays_in_its_channel(device, backend):
    gate, up = inputs((9, 5), device=device)
    gate[3, 2], up[4, 1] = torch.nan, torch.nan
    moments, gated = gated_moments(gate, up, backend=backend)
    assert moments.isnan().all(0).tolist() == [False, True, True, False, False]
    assert gated[[0, 2]].isnan().all(0).tolist() == [False, False, True, False, False]
    assert gated[1].isnan().tolist() == [False, True, False, False, False]
    assert gated[3].isnan().tolist() == [False, True, True, False, False]


@OVERFLOWS
def test_saturated_gates(device, backend):
    """Where the exponential over- and underflows phi is 0 or the identity."""
    gate = torch.tensor([[-1e4, -200.0, -120.0, 120.0, 200.0, 1e4]], device=device)
    up = torch.ones_like(gate)
    for activation in ACTIVATIONS:
        moments, gated = gated_moments(gate, up, activation, backend=backend)
        expected = gate[0].clamp_min(0)
        torch.testing.assert_close(moments[1], expected, rtol=1e-6, atol=1e-30)
        torch.testing.assert_close(gated[3], (expected > 0).float(), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_small_values_keep_their_digits(device, backend, activation):
    """Far below 0 phi is nearly its exponential; the sums of a channel that is always there."""
    gate = torch.linspace(-12, -4, 64, device=device)[:, None]
    up = torch.ones_like(gate)
    gated = gated_moments(gate, up, activation, backend=backend)[1].double()
    expected = exact(gate, up, activation)[0][3:]
    torch.testing.assert_close(gated, expected, rtol=1e-5, atol=0)


def test_views(device, backend):
    gate = 2 * torch.randn(6, 90, device=device)
    up = torch.randn(90, 6, device=device)
    found = gated_moments(gate.T, up, backend=backend)
    assert_right(found, exact(gate.T, up, "silu"))
    found = gated_moments(gate[1:4, 7:13], up[:3], backend=backend)
    assert_right(found, exact(gate[1:4, 7:13], up[:3], "silu"))
    h = swiglu_moments(gate.T, up, backend=backend)[0]
    torch.testing.assert_close(h, torch.nn.functional.silu(gate.T) * up, rtol=1e-5, atol=1e-6)


def test_repeats_bit_for_bit(device, backend):
    gate, up = inputs((100, 130), torch.bfloat16, device)
    first, second = (swiglu_moments(gate, up, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_number_of_threads_changes_nothing(dtype, activation):
    gate, up = inputs((300, 1501), dtype)
    mask = torch.rand(300) > 0.3
    many = gated_moments(gate, up, activation, mask)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for a, b in zip(many, gated_moments(gate, up, activation, mask), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_float64_is_exact():
    gate, up = (t.double() for t in inputs((300, 5)))
    found = torch.cat(gated_moments(gate, up, "gelu"))
    torch.testing.assert_close(found, exact(gate, up, "gelu")[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_registration(product, masked):
    mask = torch.rand(2, 4) > 0.5 if masked else None
    torch.library.opcheck(OP.overload, (*inputs((2, 4, 3)), "silu", mask, product))


def test_compiles_without_a_break():
    gate, up = inputs((5, 4))
    compiled = torch.compile(swiglu_moments, backend="aot_eager", fullgraph=True)
    for a, b in zip(compiled(gate, up), swiglu_moments(gate, up), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2), torch.zeros(2, 3)), r"up has shape \[2, 3\]; it must be \[2, 2\]"),
        ((torch.zeros(2, 2), torch.zeros(2, 2).half()), "up is torch.float16"),
        ((torch.zeros(2, 2), torch.zeros(2, 2), "relu2"), "activation is 'relu2'"),
        (
            (torch.zeros(2, 2), torch.zeros(2, 2), "silu", torch.ones(3, dtype=torch.bool)),
            r"mask has shape \[3\]; it must be \[2\]",
        ),
    ],
)
@pytest.mark.parametrize("function", [swiglu_moments, gated_moments])
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, function, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        function(*arguments, backend=forced)
