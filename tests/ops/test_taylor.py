"""Taylor sums: every backend against float64, and the identities of a real model's gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from compressor.kernels.taylor import MAGNITUDES, OP, STATISTICS, Taylor, grouped, taylor

MIXES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
]
BOTH = {"rows": True, "columns": True}
ASKED = {"rows": {}, "columns": {"rows": False, "columns": True}, "both": BOTH}


def matrices(shape, device, dtypes=(torch.float32, torch.float32)):
    return [torch.randn(shape, device=device).to(dtype) for dtype in dtypes]


def check(weight, grad, found: Taylor, scale=1.0, row_group=1, column_group=1):
    """Against float64 with the tolerances of a float32 sum."""
    w = weight.double()
    p = w * (grad.double() * scale)
    statistics = torch.stack((p, p.abs(), p.square(), w.abs(), w.square()))
    exact = {
        "rows": grouped(statistics.sum(2), row_group),
        "columns": grouped(statistics.sum(1), column_group),
    }
    for side, sums in exact.items():
        made = getattr(found, side)
        if made is None:
            continue
        assert made.dtype == torch.float32
        sums = sums[: len(made)]
        # Terms of both signs cancel: their error is in proportion to the sum of |p|, not to theirs.
        assert ((made[0] - sums[0]).abs() <= 1e-6 * sums[1] + 1e-30).all()
        torch.testing.assert_close(made[1:].double(), sums[1:], rtol=3e-6, atol=1e-30)
    assert found.nonfinite.item() == 0


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 7), (0, 4), (4, 0), (129, 65), (3, 2500), (300, 257)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtypes", MIXES, ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", ""))
@pytest.mark.parametrize("asked", ASKED)
def test_equals_float64(device, backend, shape, dtypes, asked):
    weight, grad = matrices(shape, device, dtypes)
    magnitude = asked == "both"
    found = taylor(weight, grad, **ASKED[asked], magnitude=magnitude, backend=backend)
    assert (found.rows is None) == (asked == "columns")
    assert (found.columns is None) == (asked == "rows")
    for sums, channels in ((found.rows, shape[0]), (found.columns, shape[1])):
        if sums is not None:
            count = len(STATISTICS) + len(MAGNITUDES) * magnitude
            assert sums.shape == (count, channels)
    check(weight, grad, found)


@given(
    rows=st.integers(0, 150),
    columns=st.integers(0, 150),
    row_group=st.integers(1, 9),
    column_group=st.integers(1, 9),
    asked=st.sampled_from(sorted(ASKED)),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(device, backend, rows, columns, row_group, column_group, asked):
    groups = {"row_group": row_group, "column_group": column_group}
    shape = rows // row_group * row_group, columns // column_group * column_group
    weight, grad = matrices(shape, device)
    found = taylor(weight, grad, **ASKED[asked], **groups, backend=backend)
    check(weight, grad, found, **groups)


def test_views(device, backend):
    fused, grad = matrices((48, 40), device, MIXES[1])
    for part in (slice(0, 16), slice(16, 48)):
        check(fused[part], grad[part], taylor(fused[part], grad[part], **BOTH, backend=backend))
    inner = slice(3, 41), slice(5, 30)
    check(fused[inner], grad[inner], taylor(fused[inner], grad[inner], **BOTH, backend=backend))
    turned = fused.T, grad.T
    for asked in ASKED.values():
        check(*turned, taylor(*turned, **asked, row_group=8, backend=backend), row_group=8)
    mixed = fused, grad.T.contiguous().T
    check(*mixed, taylor(*mixed, **BOTH, backend=backend))
    scattered = fused[::2, ::3], grad[::2, ::3]
    check(*scattered, taylor(*scattered, **BOTH, backend=backend))
    spread = fused[:1].expand(48, 40), grad[:, :1].expand(48, 40)
    check(*spread, taylor(*spread, **BOTH, backend=backend))


def test_groups_are_sums_of_their_channels(device, backend):
    weight, grad = matrices((300, 260), device)
    groups = {"row_group": 75, "column_group": 130}
    found = taylor(weight, grad, **BOTH, magnitude=True, **groups, backend=backend)
    assert (found.rows.shape, found.columns.shape) == ((5, 4), (5, 2))
    check(weight, grad, found, **groups)
    channels = taylor(weight, grad, **BOTH, magnitude=True, backend=backend)
    size = channels.rows[1].sum().item()
    torch.testing.assert_close(grouped(channels.rows, 75), found.rows, rtol=1e-6, atol=1e-7 * size)
    folded = grouped(channels.columns, 130)
    torch.testing.assert_close(folded, found.columns, rtol=1e-6, atol=1e-7 * size)


@pytest.mark.parametrize("groups", [{}, {"row_group": 5, "column_group": 3}], ids=str)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("rows", [20, 100])
def test_sequences_stream(device, backend, rows, groups, asked):
    weight = torch.randn(rows, 30, device=device)
    grads = [torch.randn_like(weight) for _ in range(3)]
    grads[1][7, 7] = float("nan")
    keywords = {**ASKED[asked], **groups, "magnitude": True, "backend": backend}
    streamed = taylor(weight, grads[0], **keywords)
    for grad in grads[1:]:
        assert taylor(weight, grad, **keywords, out=streamed) is streamed
    alone = [taylor(weight, grad, **keywords) for grad in grads]
    for side in range(2):
        if streamed[side] is not None:
            added = alone[0][side] + alone[1][side] + alone[2][side]
            assert added.isnan().any()
            assert torch.equal(streamed[side].nan_to_num(-1), added.nan_to_num(-1))
    assert streamed.nonfinite.item() == 1


def test_gradient_scale(device, backend):
    weight, grad = matrices((33, 20), device, MIXES[2])
    check(weight, grad, taylor(weight, grad, **BOTH, grad_scale=0.3, backend=backend), scale=0.3)
    # A power of two changes exponents only.
    plain = taylor(weight, grad, backend=backend).rows
    scaled = taylor(weight, grad, grad_scale=-(2.0**-12), backend=backend).rows
    factors = torch.tensor([-(2.0**-12), 2.0**-12, 2.0**-24], device=device)
    assert torch.equal(scaled, plain * factors[:, None])


def test_products_too_small_for_half_precision(device, backend):
    weight = torch.full((4, 6), 2.0**-20, dtype=torch.float16, device=device)  # subnormal
    grad = torch.full((4, 6), -(2.0**-24), dtype=torch.float16, device=device)
    found = taylor(weight, grad, backend=backend).rows
    # Sums of six equal powers of two are exact.
    exact = torch.tensor([-6 * 2.0**-44, 6 * 2.0**-44, 6 * 2.0**-88], device=device)
    assert torch.equal(found, exact[:, None].expand(3, 4))


def test_no_gradient(device, backend):
    weight = torch.randn(5, 6, device=device)
    found = taylor(weight, torch.full_like(weight, -0.0), **BOTH, backend=backend)
    assert found.rows.abs().sum().item() == 0 and found.columns.abs().sum().item() == 0


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # numpy, interpreting
@pytest.mark.parametrize("asked", ASKED)
def test_not_finite_products_are_counted_and_stay_in_their_channels(device, backend, asked):
    weight = torch.ones(40, 30, device=device)
    grad = torch.ones(40, 30, device=device)
    grad[1, 2] = float("nan")
    grad[3, 4] = float("inf")
    weight[39, 29], grad[39, 29] = -float("inf"), 0.0
    weight[3, 5], grad[3, 5] = 3e38, -3e38
    weight[8, 8], grad[8, 8] = 3e19, 3e18  # a finite product with an infinite square
    found = taylor(weight, grad, **ASKED[asked], backend=backend)
    assert found.nonfinite.item() == 4
    if found.rows is not None:
        assert (~found.rows[1].isfinite()).nonzero().flatten().tolist() == [1, 3, 39]
        assert found.rows[:, 8].isinf().tolist() == [False, False, True]
        assert found.rows[0].isnan().nonzero().flatten().tolist() == [1, 3, 39]
    if found.columns is not None:
        assert (~found.columns[0].isfinite()).nonzero().flatten().tolist() == [2, 4, 5, 29]
        assert found.columns[0, 4:6].tolist() == [float("inf"), -float("inf")]


@pytest.mark.parametrize("asked", ASKED)
def test_a_sum_that_is_not_finite_does_not_count(device, backend, asked):
    """Of finite products; and one of the last tile that is not, beside them."""
    weight, grad = (torch.full((70, 300), 1e19, device=device) for _ in range(2))
    assert taylor(weight, grad, **ASKED[asked], backend=backend).nonfinite.item() == 0
    grad[69, 299] = torch.nan
    assert taylor(weight, grad, **ASKED[asked], backend=backend).nonfinite.item() == 1


@pytest.mark.parametrize("asked", ASKED)
def test_repeats_bit_for_bit(device, backend, asked):
    weight, grad = matrices((210, 130), device, MIXES[1])
    first = taylor(weight, grad, **ASKED[asked], backend=backend)
    again = taylor(weight, grad, **ASKED[asked], backend=backend)
    assert all(a is None or torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("asked", ASKED)
def test_the_number_of_threads_changes_nothing(asked):
    weight, grad = matrices((700, 3000), "cpu", MIXES[1])
    groups = {"row_group": 70, "column_group": 10}
    many = taylor(weight, grad, **ASKED[asked], **groups)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = taylor(weight, grad, **ASKED[asked], **groups)
    finally:
        torch.set_num_threads(threads)
    assert all(a is None or torch.equal(a, b) for a, b in zip(many, one, strict=True))


def test_float64_is_exact():
    weight, grad = torch.randn(9, 8, dtype=torch.float64), torch.randn(9, 8)
    found = taylor(weight, grad).rows
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[0], (weight * grad).sum(1), rtol=1e-14, atol=1e-14)


def test_parameters_need_no_detaching():
    weight = torch.nn.Parameter(torch.randn(4, 3))
    found = taylor(weight, torch.ones(4, 3)).rows
    assert not found.requires_grad
    torch.testing.assert_close(found[0], weight.detach().sum(1))


def test_identities_of_a_model(device, backend):
    """Units that scale the same thing have the same signed sum: up and down, v and o, q and k."""
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=6,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = (parameter.ndim == 1) + 0.3 * torch.randn_like(parameter)
    model.to(device)
    tokens = torch.randint(60, (2, 17), device=device)
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    repeats = 8 // 2
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp

        def rows(linear, group=1):
            return taylor(linear.weight, linear.weight.grad, row_group=group, backend=backend).rows

        def columns(linear, group=1):
            weight = linear.weight
            groups = {"rows": False, "columns": True, "column_group": group}
            return taylor(weight, weight.grad, **groups, backend=backend).columns

        pairs = {
            "up, down": (rows(mlp.up_proj), columns(mlp.down_proj)),
            "v, o": (rows(attention.v_proj, 6), columns(attention.o_proj, 6 * repeats)),
            "q, k": (rows(attention.q_proj, 6 * repeats), rows(attention.k_proj, 6)),
        }
        for name, (one, other) in pairs.items():
            # float32 activations are off by 1e-6 or so; sums of |p| measure what they are off by.
            difference = (one[0] - other[0]).abs() / torch.maximum(one[1], other[1])
            assert difference.max() < 1e-4, name
            assert (one[0].abs() / one[1]).max() > 1e-2, name
        # Heads h and h + 4 share no KV group: folded like that, q does not match k.
        heads = rows(attention.q_proj, 6)
        wrong = heads[0].view(repeats, 2).sum(0)
        k = rows(attention.k_proj, 6)
        assert ((wrong - k[0]).abs() / heads[1].view(repeats, 2).sum(0)).max() > 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("asked", ASKED)
def test_more_than_two_to_the_31_elements(asked):
    weight = torch.ones(32_800, 65_536, dtype=torch.bfloat16, device="cuda")
    assert weight.numel() > 2**31
    weight[-1, -1] = 3
    found = taylor(weight, weight, **ASKED[asked])
    if found.rows is not None:
        assert found.rows[0, -2:].tolist() == [65_536, 65_536 + 8]
    if found.columns is not None:
        assert found.columns[0, -2:].tolist() == [32_800, 32_800 + 8]


@pytest.mark.parametrize("asked", ASKED)
def test_registration(asked):
    made = taylor(torch.randn(6, 8), torch.randn(6, 8), **ASKED[asked], row_group=2)
    arguments = (torch.randn(6, 8), torch.randn(6, 8).bfloat16(), *made, 2, 1, 0.5)
    torch.library.opcheck(OP.overload, arguments)


def test_compiles_without_a_break():
    weight, grad = matrices((5, 4), "cpu")

    def importance(w, g):
        first = taylor(w, g, **BOTH)
        return taylor(w, g, **BOTH, out=first).rows[1] + 1

    compiled = torch.compile(importance, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight, grad), 2 * (weight * grad).abs().sum(1) + 1)


W = torch.zeros(6, 4)
MADE = taylor(W, W)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((torch.zeros(3), W), {}, r"weight has shape \[3\]; it must be \[any, any\]"),
        ((W, W.T), {}, r"grad has shape \[4, 6\]; it must be \[6, 4\]"),
        ((W.int(), W), {}, "weight is torch.int32"),
        ((W, None), {}, "grad must be a tensor, not NoneType"),
        ((W, W), {"rows": False}, "neither rows nor columns"),
        ((W, W), {"row_group": 4}, "row_group is 4; it must divide the 6 rows"),
        ((W, W), {"column_group": 0}, "column_group is 0; it must divide the 4 columns"),
        ((W, W), {"columns": True, "out": MADE}, "as when out was made"),
        ((W, W), {"magnitude": True, "out": MADE}, "out has 3 statistics, but magnitude=True"),
        (
            (W, W),
            {"row_group": 2, "out": MADE},
            r"out.rows has shape \[3, 6\]; it must be \[3, 3\]",
        ),
        ((W.double(), W), {"out": MADE}, "out.rows is torch.float32; it must be one of float64"),
        ((W, W), {"out": MADE._replace(rows=torch.zeros(6, 3).T)}, "rows must be contiguous"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, keywords, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        taylor(*arguments, **keywords, backend=forced)
