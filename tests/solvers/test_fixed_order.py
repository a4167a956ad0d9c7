"""The same bits with one thread, two and four; torch's own sums and LAPACK differ there."""

import pytest
import torch
from torch import linalg

from compressor.repairing.stepping import step_size
from compressor.solvers.elimination import eliminate
from compressor.solvers.fixed_order import UNSPLIT, factored, total
from compressor.solvers.obs import inverse_factor
from compressor.solvers.prefixes import refit_errors
from compressor.solvers.ridge import Moments, ridge

CHANNELS, OUTPUTS = 320, 96  # of fewer LAPACK makes one block


def on_threads(work) -> list:
    """What work() gives with each number of threads."""
    found, former = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(work())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(former)
    return found


def same(found: list) -> bool:
    return all(torch.equal(one, found[0]) for one in found[1:])


@pytest.fixture
def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def gram(drawn) -> torch.Tensor:
    inputs = torch.randn(2 * CHANNELS, CHANNELS, generator=drawn)
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize(
    "shape", [(), (0,), (7,), (3 * UNSPLIT,), (1, 3 * UNSPLIT), (5, 0), (900, 900), (6, 300, 400)]
)
def test_a_total(drawn, shape):
    x = torch.randn(shape, generator=drawn)
    for dtype in (torch.float32, torch.float64):
        (found, *others) = on_threads(lambda dtype=dtype: total(x, dtype))
        assert found.dtype == dtype and found.shape == () and same([found, *others])
        assert found.item() == pytest.approx(x.double().sum().item(), rel=1e-4, abs=1e-3)


def test_what_it_is_for(drawn, gram):
    """Should torch and LAPACK once come out the same, `fixed_order` is not needed any more."""
    x = torch.randn(1000, 1000, generator=drawn)
    found = on_threads(lambda: torch.stack([x.sum(), x.abs().sum(), x.square().sum()]))
    assert not same(found) or not same(on_threads(lambda: linalg.cholesky(gram + 1e-3)))


def test_factors_and_what_is_made_of_them(drawn, gram):
    weight = torch.randn(OUTPUTS, CHANNELS, generator=drawn)
    scores = torch.rand(CHANNELS, generator=drawn)
    assert same(on_threads(lambda: factored(gram.double())))
    assert same(on_threads(lambda: inverse_factor(gram, "w")))
    assert same(on_threads(lambda: eliminate(gram, weight, scores)))
    assert same(on_threads(lambda: eliminate(gram, weight, scores[: CHANNELS // 32])))


def test_refits(drawn):
    def sums() -> Moments:
        found = Moments.empty(CHANNELS, OUTPUTS, torch.device("cpu"))
        x = torch.randn(700, CHANNELS, generator=torch.Generator().manual_seed(1))
        found.add(x, x[:, :OUTPUTS] * 3)
        return found

    weight = torch.randn(OUTPUTS, CHANNELS, generator=drawn)
    order = torch.randperm(CHANNELS, generator=drawn)

    def refitted() -> torch.Tensor:
        fit, held = sums(), sums()
        given = (held.gram, held.cross, held.energy)
        new, _, errors = ridge(fit.gram, fit.cross, weight, *given, (1e-3, 1e-2))
        return torch.cat((new.double().flatten(), torch.tensor(errors).double(), held.energy[None]))

    assert same(on_threads(refitted))
    assert same(on_threads(lambda: refit_errors(sums(), sums(), weight, order, (1e-3,))))


def test_steps_of_a_training(drawn):
    weight = torch.randn(768, 1000, generator=drawn)
    assert len({*on_threads(lambda: step_size(weight))}) == 1


def test_what_is_no_factor(gram):
    assert factored(-gram) is None
    gram[3, 3] = torch.nan
    assert factored(gram) is None
