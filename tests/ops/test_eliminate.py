"""Greedy elimination: every backend against the matrices themselves, brought up to date step by step."""

import pytest
import torch
from counting import NEEDS_EXTENSION

from compressor.kernels.eliminate import MOST, OP, eliminate

WIDE = [torch.float64, torch.float32]


def problem(channels, seed=0, dtype=torch.float64):
    """A damped inverse, products of weights and a prior."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, weight = drawn(3 * channels + 5, channels), drawn(channels // 2 + 1, channels)
    gram = inputs.T @ inputs / len(inputs)
    inverse = torch.linalg.inv(gram + 0.1 * gram.diagonal().diag()).contiguous()
    prior = drawn(channels).square() + 0.01
    return [x.to(dtype) for x in (inverse, weight.T @ weight, prior)]


def expected(inverse, products, prior, count):
    """With both matrices changed after every step; also what has been taken off them."""
    h, k = inverse.clone(), products.clone()
    gone, costs = [], []
    for _ in range(count):
        cost = prior * k.diagonal().clamp_min(0) / h.diagonal()
        cost[gone] = torch.inf
        g = int(cost.argmin())
        gone.append(g)
        costs.append(cost[g])
        v = h[:, g] / h[g, g].sqrt()
        u = k[:, g] / h[g, g].sqrt() - k[g, g] / (2 * h[g, g]) * v
        h, k = h - v.outer(v), k - u.outer(v) - v.outer(u)
    return torch.tensor(gone, dtype=torch.int64), torch.tensor(costs), inverse - h, products - k


@pytest.mark.parametrize("channels", [1, 2, 63, 64, 65, 130, 200])
def test_equals_the_matrices_brought_up_to_date(device, backend, channels):
    given = problem(channels)
    count = min(channels, MOST)
    gone, costs, of_inverse, of_products = expected(*given, count)
    order, found, v, u = eliminate(*(x.to(device) for x in given), count, backend=backend)
    assert torch.equal(order.cpu(), gone)
    torch.testing.assert_close(found.cpu(), costs.double(), rtol=1e-9, atol=1e-12)
    v, u = v.cpu(), u.cpu()
    torch.testing.assert_close(v.T @ v, of_inverse, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(u.T @ v + v.T @ u, of_products, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 37])
def test_in_float32_it_is_as_exact_as_that_is(device, backend, count):
    given = problem(150, seed=1)
    gone, costs, *_ = expected(*given, count)
    order, found, v, u = eliminate(*(x.float().to(device) for x in given), count, backend=backend)
    assert order.dtype == torch.int64 and v.shape == u.shape == (count, 150)
    assert found.dtype == torch.float32
    assert torch.equal(order.cpu(), gone)
    torch.testing.assert_close(found.cpu(), costs.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_of_equal_costs_the_first_goes(device, backend, dtype):
    eye = torch.eye(100, dtype=dtype, device=device)
    prior = torch.ones(100, dtype=dtype, device=device)
    prior[[70, 5]] = 0.5
    order, costs, *_ = eliminate(eye, eye.clone(), prior, 100, backend=backend)
    rest = [i for i in range(100) if i not in (5, 70)]
    assert order.tolist() == [5, 70, *rest]
    assert costs.tolist() == [0.5, 0.5, *[1.0] * 98]


def test_a_cost_that_is_no_number_comes_last_and_is_told(device, backend):
    inverse, products, prior = (x.to(device) for x in problem(70))
    prior[[3, 66]] = torch.nan
    prior[10] = torch.inf
    order, costs, *_ = eliminate(inverse, products, prior, 70, backend=backend)
    assert sorted(order.tolist()) == [*range(70)]
    assert order[-3:].tolist() == [3, 10, 66]
    assert costs[-3:].isfinite().tolist() == [False] * 3
    assert costs[:-3].isfinite().all()


def test_products_that_are_no_numbers_come_last(device, backend):
    inverse, products, prior = (x.to(device) for x in problem(70))
    products[[3, 66], [3, 66]] = torch.nan
    order, costs, *_ = eliminate(inverse, products, prior, 70, backend=backend)
    assert {*order[-2:].tolist()} == {3, 66}
    assert costs[-2:].isnan().all() and costs[:-2].isfinite().all()


@NEEDS_EXTENSION
def test_the_number_of_threads_changes_nothing():
    """Of the C++, the one backend whose loops are ours and have threads."""
    channels = 4100  # enough for two threads
    noise = 1e-4 * torch.randn(channels, channels)
    inverse = noise + noise.T + torch.eye(channels)
    given = inverse, inverse.flip(0, 1).contiguous(), torch.rand(channels)
    former = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(eliminate(*given, 9, backend="ext"))
    finally:
        torch.set_num_threads(former)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": 9}, ValueError, "count is 9; it must be between 0 and 8"),
        ({"count": -1}, ValueError, "count is -1"),
        ({"prior": torch.ones(8, dtype=torch.float16)}, TypeError, "prior is torch.float16"),
        ({"inverse": torch.eye(7)}, ValueError, r"inverse has shape \[7, 7\]"),
        ({"products": torch.eye(8).double()}, TypeError, "products is torch.float64"),
        ({"inverse": torch.eye(16)[::2, ::2]}, ValueError, "inverse must be contiguous"),
        ({"prior": torch.ones(16)[::2]}, ValueError, "prior must be contiguous"),
    ],
)
def test_bad_arguments(device, backend, change, error, message):
    given = {"inverse": torch.eye(8), "products": torch.eye(8), "prior": torch.ones(8), "count": 4}
    given |= change
    with pytest.raises(error, match=message):
        eliminate(
            *(x.to(device) if isinstance(x, torch.Tensor) else x for x in given.values()),
            backend=backend,
        )


def test_is_an_operator_of_torch(device, backend):
    torch.library.opcheck(OP.overload, (*(x.to(device) for x in problem(6)), 4))
