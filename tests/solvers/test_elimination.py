"""Greedy elimination, against refits in float64 of every candidate."""

import pytest
import torch

import compressor.solvers.elimination as elimination
from compressor.errors import InputError
from compressor.solvers.elimination import eliminate, own_errors, rising

OUTPUTS = 5


def problem(units, width, seed=0):
    torch.manual_seed(seed)
    channels = units * width
    inputs = torch.randn(6 * channels, channels, dtype=torch.float64)
    inputs = inputs @ torch.randn(channels, channels, dtype=torch.float64)
    gram = inputs.T @ inputs / len(inputs)
    return gram, torch.randn(OUTPUTS, channels, dtype=torch.float64)


def refit_cost(gram, weight, kept, damping) -> float:
    """min over W' with only `kept` channels of tr((W - W') (G + lambda diag G) (W - W')^T)."""
    damped = gram + damping * gram.diagonal().diag()
    new = torch.zeros_like(weight)
    if kept:
        new[:, kept] = torch.linalg.solve(damped[kept][:, kept], (weight @ damped[:, kept]).T).T
    lost = weight - new
    return (lost @ damped * lost).sum().item()


def by_hand(gram, weight, scores, damping):
    """Every step refits all that remain without each candidate."""
    units = len(scores)
    width = len(gram) // units
    alone = own_errors(gram, weight, units)
    left, order, costs = list(range(units)), [], []

    def channels(some):
        return [c for u in some for c in range(u * width, (u + 1) * width)]

    present = 0.0
    while left:
        totals = {
            u: refit_cost(gram, weight, channels([v for v in left if v != u]), damping)
            for u in left
        }
        cost = {u: (scores[u] / alone[u]).item() * (totals[u] - present) for u in left}
        gone = min(left, key=cost.get)
        present = totals[gone]
        left.remove(gone)
        order.append(gone)
        costs.append(cost[gone])
    return order, costs


@pytest.mark.parametrize(("units", "width"), [(23, 1), (6, 4), (1, 4), (1, 1)])
@pytest.mark.parametrize("pending", [1, 5, 128])
def test_equals_refits_of_every_candidate(units, width, pending, monkeypatch):
    monkeypatch.setattr(elimination, "MOST", pending)
    gram, weight = problem(units, width)
    scores = torch.rand(units, dtype=torch.float64) * own_errors(gram, weight, units)
    found = eliminate(gram, weight, scores, 1e-3)
    order, costs = by_hand(gram, weight, scores, 1e-3)
    assert found.argsort().tolist() == order
    highest = torch.tensor(costs).cummax(0).values
    torch.testing.assert_close(found[order], highest, rtol=1e-5, atol=0)


def test_own_errors_are_those_of_zeroed_units():
    gram, weight = problem(4, 3)
    for unit, error in enumerate(own_errors(gram, weight, 4)):
        lost = torch.zeros_like(weight)
        lost[:, 3 * unit : 3 * unit + 3] = weight[:, 3 * unit : 3 * unit + 3]
        assert (lost @ gram * lost).sum().item() == pytest.approx(error.item())


@pytest.mark.parametrize("width", [1, 3])
def test_of_two_that_are_alike_one_goes_first_and_the_other_stays(width):
    torch.manual_seed(3)
    inputs = torch.randn(400, 8 * width, dtype=torch.float64)
    inputs[:, 5 * width : 6 * width] = inputs[:, 2 * width : 3 * width]
    gram = inputs.T @ inputs / len(inputs)
    weight = torch.randn(OUTPUTS, 8 * width, dtype=torch.float64)
    order = eliminate(gram, weight, own_errors(gram, weight, 8), 1e-6).argsort().tolist()
    assert order[0] in (2, 5)
    assert ({2, 5} - {order[0]}).pop() in order[2:]


def test_units_that_are_always_zero_go_first():
    gram, weight = problem(9, 1)
    gram[4], gram[:, 4] = 0, 0
    weight[:, 7] = 0
    order = eliminate(gram, weight, torch.full((9,), 1e6, dtype=torch.float64)).argsort().tolist()
    assert set(order[:2]) == {4, 7}


@pytest.mark.parametrize("width", [1, 3])
def test_units_of_measure_do_not_matter(width):
    """Of what a channel carries; its weights make up for it."""
    gram, weight = problem(6, width)
    scale = torch.logspace(-3, 3, len(gram), dtype=torch.float64)
    scores = own_errors(gram, weight, 6)
    found = eliminate(gram * scale * scale[:, None], weight / scale, scores)
    torch.testing.assert_close(found, eliminate(gram, weight, scores), rtol=1e-5, atol=0)


def test_nothing_is_nan_where_nothing_flows():
    found = eliminate(torch.zeros(6, 6), torch.randn(3, 6), torch.ones(6))
    assert found.isfinite().all() and len(found.unique()) == 6


def test_rank_deficient():
    torch.manual_seed(0)
    inputs = torch.randn(5, 40)
    gram = inputs.T @ inputs / 5
    found = eliminate(gram, torch.randn(4, 40), torch.rand(40))
    assert found.isfinite().all() and len(found.unique()) == 40


def test_indefinite_is_refused():
    with pytest.raises(InputError, match=r"not positive definite with a damping of 0\.1"):
        eliminate(torch.diag(torch.tensor([1.0, -1, 3])), torch.ones(2, 3), torch.ones(3))


def test_float32_orders_most_units_as_float64_does():
    gram, weight = problem(300, 1)
    scores = own_errors(gram, weight, 300)
    wide = eliminate(gram, weight, scores).argsort().argsort()
    narrow = eliminate(gram.float(), weight.float(), scores.float()).argsort().argsort()
    kept = (wide >= 150) == (narrow >= 150)
    assert kept.double().mean() > 0.98


def test_costs_rise_with_the_order():
    found = rising(torch.tensor([3.0, 2.0, 2.0, 5.0]), torch.tensor([0, 2, 1, 3]))
    assert found.argsort().tolist() == [0, 2, 1, 3]
    assert found[0] == 3 and found[3] == 5 and found[1] == pytest.approx(3)
