"""Any target is begun at and ended on exactly, by pure functions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.sparse.besa import CANDIDATES, Groups, begin, distribution
from compressor.sparse.budget import budget, candidates, exact_cuts, tilted

SHAPES = {"a": (7, 33), "b": (12, 5), "c": (3, 190)}
WEIGHTS = sum(rows * columns for rows, columns in SHAPES.values())
TARGETS = [0.001, 0.1, 0.37, 0.5, 0.9, 0.999]


@pytest.mark.parametrize(
    "weights, sparsity, zeros",
    [(100, 0.29, 29), (10, 0.7, 7), (1000, 0.57, 570), (3, 0.5, 1), (7, 1e-05, 0)],
)
def test_the_budget_is_the_floor_of_the_written_decimal(weights, sparsity, zeros):
    assert budget(weights, sparsity) == zeros


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_the_tilt_solves_the_target(target, spread):
    torch.manual_seed(0)
    theta, columns = spread * torch.randn(11, 101), torch.randint(1, 99, (11,))
    zeros = target * int(columns.sum())
    beta = tilted(theta, columns, zeros).softmax(1)
    assert beta.dtype == torch.float64
    found = columns.double() @ (beta @ candidates(101, beta))
    torch.testing.assert_close(found.item(), zeros, rtol=1e-9, atol=0)


def test_the_tilt_is_one_number():
    theta = torch.randn(5, 11, dtype=torch.float64)
    added = tilted(theta, torch.ones(5), 3.5) - theta
    p = candidates(11, theta)
    torch.testing.assert_close(added, added[0, -1] * p.expand(5, -1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sharing", ["row", "layer"])
def test_learning_begins_at_the_target(target, sharing):
    groups = Groups({name: torch.empty(shape) for name, shape in SHAPES.items()}, sharing)
    zeros = max(1, budget(WEIGHTS, target))
    beta = distribution(begin(groups, zeros, parity=False), parity=False)
    assert beta.shape == (22 if sharing == "row" else 3, CANDIDATES)
    alpha = beta.double() @ candidates(CANDIDATES, beta).double()
    torch.testing.assert_close(alpha, torch.full_like(alpha, zeros / WEIGHTS), rtol=1e-4, atol=0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sharing", ["row", "layer"])
def test_learning_ends_on_the_budget(target, sharing):
    torch.manual_seed(1)
    groups = Groups({name: torch.empty(shape) for name, shape in SHAPES.items()}, sharing)
    zeros = max(1, budget(WEIGHTS, target))
    beta = tilted(3 * torch.randn(len(groups.sizes), CANDIDATES), groups.sizes, zeros).softmax(1)
    alpha = beta @ candidates(CANDIDATES, beta)
    cuts = groups.cuts(alpha, zeros)
    assert sum(int(cut.sum()) for cut in cuts.values()) == zeros
    for (name, (rows, columns)), own in zip(
        SHAPES.items(), groups.by_matrix(alpha).values(), strict=True
    ):
        assert cuts[name].dtype == torch.int32 and cuts[name].shape == (rows,)
        wanted = own.repeat_interleave(rows // len(own)) * columns
        assert (cuts[name] - wanted).abs().max() < 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_exact_cuts(data):
    columns = torch.tensor(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=30)))
    alpha = torch.rand(
        len(columns), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    zeros = data.draw(st.integers(0, int(columns.sum())))
    wanted = alpha * columns
    # Any wanted numbers of the right sum, between 0 and the columns.
    share = zeros / wanted.sum()
    wanted = (
        wanted * share
        if share <= 1
        else columns - (columns - wanted) * ((columns.sum() - zeros) / (columns - wanted).sum())
    )
    cuts = exact_cuts(wanted, columns, zeros)
    assert int(cuts.sum()) == zeros
    assert ((cuts >= 0) & (cuts <= columns)).all()
    assert (cuts - wanted).abs().max() < 1 + 1e-9


def test_what_is_missing_goes_to_the_largest_remainders_and_of_equal_ones_to_the_first():
    wanted = torch.tensor([1.5, 2.7, 0.5, 3.3], dtype=torch.float64)
    assert exact_cuts(wanted, torch.full((4,), 9), 8).tolist() == [2, 3, 0, 3]
