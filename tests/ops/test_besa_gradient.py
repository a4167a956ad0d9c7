"""The gradient of BESA's distribution, against float64 and the published construction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.kernels.bench import published_besa
from compressor.kernels.besa_cut import besa_cut
from compressor.kernels.besa_mask import BACKWARD, OP, besa_mask
from compressor.kernels.rank import rank

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def ranked(rows, columns, device="cpu", dtype=torch.float32, seed=1):
    # Not from the tests' own generator, whose first numbers are their gradients.
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(device, dtype)
    return weight, rank(weight)


def kept(ranks, cut):
    each = ranks.shape[0] // max(len(cut), 1)
    return ranks.to(torch.int32) >= cut.repeat_interleave(each)[:, None]


def wanted_gradient(weight, grad, ranks, groups, candidates):
    """In float64, with the largest sum of magnitudes a float32 result may be off by a part of."""
    columns = weight.shape[1]
    products = (weight.double() * grad.double()).cpu()
    total = torch.zeros(groups, candidates, dtype=torch.float64)
    for d in range(candidates):
        below = ranks.cpu().to(torch.int32) < columns * d // (candidates - 1)
        total[:, d] = -(products * below).reshape(groups, -1).sum(1)
    return total, products.abs().reshape(groups, -1).sum(1, keepdim=True)


CASES = [
    (1, 1, 1, 2),
    (5, 1000, 5, 101),  # row-wise
    (3, 1003, 3, 101),
    (6, 64, 3, 101),  # more candidates than columns
    (22, 129, 2, 8),  # groups of more than one part, the last one short
    (40, 1024, 1, 301),  # one distribution, more candidates than lie side by side
    (1, 4096, 1, 4097),
    (2, 11_008, 2, 101),
    (1, 28_680, 1, 101),
    (2, 65_535, 1, 101),
]


@pytest.mark.parametrize("rows, columns, groups, candidates", CASES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_beta(device, backend, rows, columns, groups, candidates, dtype):
    weight, ranks = ranked(rows, columns, device, dtype)
    grad = torch.randn(rows, columns, device=device).to(dtype)
    beta = torch.rand(groups, candidates, device=device, requires_grad=True)
    besa_mask(weight, ranks, beta, backend=backend).backward(grad)
    wanted, size = wanted_gradient(weight, grad, ranks, groups, candidates)
    # Float32 sums of at most some hundred terms, and sums of those: roundings of 6e-8 with both signs
    # stay far below this part of the sum of magnitudes.
    assert ((beta.grad.cpu() - wanted).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_autograd_of_the_published_construction(device, backend, groups, sampled, dtype):
    check_the_published_construction(device, backend, groups, sampled, dtype)


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("sampled", [False, True])
def test_equals_it_in_float64_too(groups, sampled):
    check_the_published_construction("cpu", "ref", groups, sampled, torch.float64)


def check_the_published_construction(device, backend, groups, sampled, dtype):
    """The same layer, loss and penalty, by this op in `dtype` and by the construction in float64."""
    exact = dtype == torch.float64
    weight, ranks = ranked(12, 500, device, dtype)
    inputs, target = (torch.randn(20, n, dtype=torch.float64, device=device) for n in (500, 12))
    theta = torch.randn(groups, 101, dtype=torch.float64 if exact else torch.float32, device=device)
    theta.requires_grad_()
    cut = besa_cut(theta.softmax(1), 500, seed=1 if sampled else None)

    def loss(masked, beta):
        alpha = beta @ torch.arange(101, device=device).to(beta.dtype).div(100)
        outputs = inputs.to(masked.dtype) @ masked.T
        return (outputs - target).square().mean() + 5 * (alpha.mean() / 0.5 - 1) ** 2

    beta = theta.softmax(1)
    ours = besa_mask(weight, ranks, beta, cut, backend=backend)
    (found,) = torch.autograd.grad(loss(ours.to(theta.dtype), beta), theta)

    theirs = theta.detach().double().requires_grad_()
    beta = theirs.softmax(1)
    order = published_besa.sorted_index(weight)
    masked = published_besa.published_mask(weight.double(), order, beta, cut)
    torch.testing.assert_close(ours.double(), masked, rtol=0, atol=2e-15)  # 1 - q + q there
    (wanted,) = torch.autograd.grad(loss(masked, beta), theirs)
    # bfloat16 rounds the gradient that arrives at the mask to 8 bits; errors of 500 products average.
    share = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    assert (found - wanted).norm() <= share * wanted.norm()


def test_of_a_linear_loss_it_is_the_difference_of_losses(device, backend):
    """Each candidate's own loss, less that of pruning nothing: for a linear loss nothing is lost."""
    weight, ranks = ranked(6, 200, device)
    slope = torch.randn(6, 200, device=device)
    beta = torch.full((6, 11), 1 / 11, device=device, requires_grad=True)
    (besa_mask(weight, ranks, beta, backend=backend) * slope).sum().backward()
    for d in range(11):
        cut = torch.full((6,), 200 * d // 10, dtype=torch.int32, device=device)
        loss = (besa_mask(weight, ranks, None, cut, backend=backend) * slope).sum(1)
        difference = loss - (weight * slope).sum(1)
        torch.testing.assert_close(beta.grad[:, d], difference, rtol=1e-5, atol=2e-5)


def test_gradient_of_the_weight(device, backend):
    weight, ranks = ranked(6, 70, device)
    weight.requires_grad_()
    beta = torch.rand(3, 11, device=device, requires_grad=True)
    grad = torch.randn(6, 70, device=device)
    besa_mask(weight, ranks, beta, backend=backend).backward(grad)
    assert torch.equal(weight.grad, grad * kept(ranks, besa_cut(beta, 70)))
    assert beta.grad.abs().sum() > 0


def test_gradcheck_of_the_weight():
    weight, ranks = ranked(3, 11, dtype=torch.float64)
    cut = torch.tensor([0, 4, 11], dtype=torch.int32)
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: besa_mask(w, ranks, None, cut), (weight,))


def test_not_a_number_reaches_the_candidates_that_prune_it(device, backend):
    weight = torch.ones(1, 100, device=device)
    ranks = torch.arange(100, device=device)[None].to(torch.uint16)
    grad = torch.ones(1, 100, device=device)
    grad[0, 35] = torch.nan
    beta = torch.rand(1, 11, device=device, requires_grad=True)
    besa_mask(weight, ranks, beta, backend=backend).backward(grad)
    assert beta.grad[0, :4].tolist() == [0, -10, -20, -30]
    assert beta.grad[0, 4:].isnan().all()


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 300),
    candidates=st.integers(2, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_shape(device, backend, rows, columns, candidates, seed):
    weight, ranks = ranked(rows, columns, device, seed=seed)
    groups = max(g for g in range(1, rows + 1) if rows % g == 0 and g <= 1 + seed % 7)
    beta = torch.rand(groups, candidates, device=device, requires_grad=True)
    found = besa_mask(weight, ranks, beta, backend=backend)
    assert torch.equal(found, weight * kept(ranks, besa_cut(beta, columns)))
    found.sum().backward()
    wanted, size = wanted_gradient(weight, torch.ones_like(weight), ranks, groups, candidates)
    assert ((beta.grad.cpu() - wanted).abs() <= 1e-6 * size).all()


def test_views(device, backend):
    whole, _ = ranked(30, 90, device)
    beta = torch.rand(10, 101, device=device, requires_grad=True)
    for weight, grad in [
        (whole[5:25, 8:72], torch.randn(20, 72, device=device)[:, 8:]),
        (whole.T[:40, :], torch.randn(30, 40, device=device).T),
        (whole[::3, 10:74], torch.randn(1, 1, device=device).expand(10, 64)),
    ]:
        ranks = rank(weight)
        found = besa_mask(weight, ranks, beta, backend=backend)
        assert torch.equal(found, weight * kept(ranks, besa_cut(beta, weight.shape[1])))
        (gradient,) = torch.autograd.grad(found, beta, grad)
        wanted, size = wanted_gradient(weight, grad, ranks, 10, 101)
        assert ((gradient.cpu() - wanted).abs() <= 1e-6 * size).all()


def test_descends_a_reconstruction_error(device, backend):
    """Rows that matter more keep more weights, at the same mean sparsity."""
    weight, _ = ranked(16, 256, device, seed=3)
    weight = weight * torch.logspace(-1, 1, 16, device=device)[:, None]
    inputs = torch.randn(512, 256, device=device)
    ranks = rank(weight, inputs.norm(dim=0))
    theta = torch.zeros(16, 101, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    shares = torch.linspace(0, 1, 101, device=device)
    target = inputs @ weight.T

    def error(masked):
        return (inputs @ masked.T - target).square().sum() / target.square().sum()

    errors, uniform = [], error(besa_mask(weight, ranks, theta.softmax(1), backend=backend)).item()
    for _ in range(60):
        beta = theta.softmax(1)
        alpha = beta @ shares
        loss = error(besa_mask(weight, ranks, beta, backend=backend))
        errors.append(loss.item())
        loss = loss + 5 * (alpha.mean() / 0.5 - 1) ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(alpha.mean().item() - 0.5) < 0.02
    assert errors[-1] < 0.6 * uniform
    assert alpha[0] > alpha[-1] + 0.2


def test_repeats_and_the_number_of_threads_changes_nothing():
    weight, ranks = ranked(72, 3000, dtype=torch.bfloat16)
    grad = torch.randn(72, 3000).bfloat16()
    cut = torch.randint(3000, (72,), dtype=torch.int32)
    threads = torch.get_num_threads()
    results = []
    for count in (threads, threads, 1, 7):
        torch.set_num_threads(count)
        results.append([BACKWARD([grad], [weight], [ranks], [g], 101) for g in (1, 4, 72)])
        results[-1] += OP([weight], [ranks], None, [cut])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_repeats_bit_for_bit(device, backend):
    weight, ranks = ranked(64, 4096, device, torch.bfloat16)
    inputs = ([weight], [weight], [ranks], [4], 101)
    first, *others = (BACKWARD(*inputs, backend=backend) for _ in range(4))
    # The reference adds in the order of CUDA's atomics, which is another every time.
    apart = 1e-5 * first.abs().max() if (device, backend) == ("cuda", "ref") else 0.0
    assert all((first - other).abs().max() <= apart for other in others)


@pytest.mark.parametrize("ranks", [torch.full((4, 9), 65_535), torch.randint(65_536, (4, 9))])
def test_ranks_that_are_no_permutation_stay_inside(device, backend, ranks, one_order):
    """What comes out means nothing; nothing else may be read or written."""
    weight = torch.randn(4, 9, device=device)
    ranks = ranks.to(torch.uint16).to(device)
    found = BACKWARD([weight], [weight], [ranks], [2], 5, backend=backend)
    assert found.shape == (2, 5)
    assert found[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("columns", "groups", "message"),
    [
        (3_000_000, 1, "weight has 3000000 columns; at most 65535"),
        (8, -1, "2 rows cannot be -1 groups"),
    ],
)
def test_bad_sizes_of_the_gradient_are_named(device, backend, columns, groups, message):
    weight = torch.zeros(2, columns, device=device)
    ranks = torch.zeros(2, columns, dtype=torch.uint16, device=device)
    for forced in (None, backend):
        with pytest.raises(ValueError, match=f"besa_mask_backward: {message}"):
            BACKWARD([weight], [weight], [ranks], [groups], 3, backend=forced)


def test_a_gradient_of_no_tensor_is_named(device, backend):
    with pytest.raises(
        TypeError, match="besa_mask_backward: weight must be a tensor, not NoneType"
    ):
        BACKWARD([None], [None], [torch.zeros(2, 2)], [1], 3, backend=backend)
