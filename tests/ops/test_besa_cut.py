"""Cuts from BESA's distributions: exact fractions, known random words, frequencies."""

from fractions import Fraction
from math import floor

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from compressor.kernels.besa_cut import OP, besa_cut
from compressor.kernels.philox import first_words


def cuts(beta, columns, **keywords):
    found = besa_cut(beta, columns, **keywords)
    assert found.dtype == torch.int32 and found.shape == beta.shape[:1]
    return found.tolist()


@pytest.mark.parametrize("candidates", [2, 3, 101, 4097])
@pytest.mark.parametrize("columns", [0, 1, 4095, 11_008, 65_535])
def test_mean_is_the_floor_of_the_exact_mean(device, backend, candidates, columns):
    beta = torch.randn(5, candidates, device=device).mul(3).softmax(1)
    wanted = []
    for row in beta.tolist():
        weighted = sum(Fraction(share) * d for d, share in enumerate(row))
        wanted.append(floor(columns * weighted / (sum(map(Fraction, row)) * (candidates - 1))))
    assert cuts(beta, columns, backend=backend) == wanted


@pytest.mark.parametrize("sampling", [{}, {"seed": 5}])
def test_one_candidate_is_its_edge(device, backend, sampling):
    for steps, columns in [(100, 4096), (100, 100), (7, 11_008), (100, 5120)]:
        found = cuts(torch.eye(steps + 1, device=device), columns, backend=backend, **sampling)
        assert found == [columns * d // steps for d in range(steps + 1)]


def test_a_uniform_distribution_cuts_half(device, backend):
    for candidates in (2, 11, 101, 102):
        beta = torch.zeros(3, candidates, device=device).softmax(1)
        for columns in (4096, 11_008, 28_672):
            assert cuts(beta, columns, backend=backend) == [columns // 2] * 3


def test_known_random_word(device, backend):
    """Philox(0) begins with 6627e8d5: exactly there the draw changes from one candidate to the other."""
    uniform = 0x6627E8 * 2.0**-24
    for below, wanted in [(uniform, 10), (uniform + 2.0**-24, 0), (1.0, 0), (0.0, 10)]:
        beta = torch.tensor([[below, 1 - below]], device=device)
        assert cuts(beta, 10, seed=0, backend=backend) == [wanted]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1])
@pytest.mark.parametrize("offset", [0, 1, 2**40 + 17, -(2**63)])
def test_backends_draw_the_same(device, backend, seed, offset):
    beta = torch.randn(1000, 101).mul(2).softmax(1)
    wanted = besa_cut(beta, 65_535, seed=seed, offset=offset, backend="ref")
    found = besa_cut(beta.to(device), 65_535, seed=seed, offset=offset, backend=backend)
    assert torch.equal(found.cpu(), wanted)
    assert len(wanted.unique()) > 50


def test_draws_follow_the_words():
    """Against the inverse of the distribution function in exact arithmetic."""
    beta = torch.tensor([[1.0, 2.0, 0.0, 5.0]]).div(8).expand(200, 4)
    words = first_words(9, 4, 200, torch.device("cpu")).tolist()
    wanted = [(0, 1, 1, 3, 3, 3, 3, 3)[word >> 29] * 10 for word in words]
    assert cuts(beta, 30, seed=9, offset=4) == wanted


def test_frequencies_follow_the_distribution(device, backend):
    beta = torch.tensor([0.02, 0.1, 0.0, 0.3, 0.08, 0.2, 0.05, 0.0, 0.15, 0.1, 0.0], device=device)
    drawn = 40_000
    found = besa_cut(beta.expand(drawn, 11), 10, seed=3, backend=backend)
    counts = torch.bincount(found.cpu(), minlength=11)
    real = beta.cpu() > 0
    assert counts[~real].sum() == 0
    wanted = beta.cpu()[real] * drawn
    chi_square = ((counts[real] - wanted).square() / wanted).sum()
    assert chi_square < 24.3  # the 0.999 quantile with 7 degrees of freedom


def test_seeds_offsets_and_groups_differ():
    beta = torch.ones(500, 101).div(101)
    draws = {tuple(cuts(beta, 100, seed=s, offset=o)) for s in range(3) for o in range(3)}
    assert len(draws) == 9
    assert len(set(cuts(beta, 100, seed=0))) > 90


@pytest.mark.parametrize("sampling", [{}, {"seed": 5}])
def test_groups_of_several_matrices_have_their_own_columns(device, backend, sampling):
    beta = torch.randn(21, 101, device=device).softmax(1)
    columns = torch.tensor([128, 65_535, 352] * 7, dtype=torch.int32, device=device)
    found = besa_cut(beta, columns, backend=backend, **sampling)
    for width in (128, 65_535, 352):
        alone = besa_cut(beta, width, backend=backend, **sampling)
        assert torch.equal(found[columns == width], alone[columns == width])


@pytest.mark.parametrize("sampling", [{}, {"seed": 5}])
def test_sums_other_than_one(device, backend, sampling):
    beta = torch.rand(40, 9, device=device)
    power = besa_cut(beta * 1024, 1000, backend=backend, **sampling)
    assert torch.equal(power, besa_cut(beta, 1000, backend=backend, **sampling))
    nothing = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]], device=device)
    assert cuts(nothing, 10, backend=backend, **sampling) == [0, 0, 0]
    assert cuts(torch.zeros(0, 5, device=device), 10, backend=backend, **sampling) == []


def test_float64():
    beta = torch.rand(50, 11)
    assert cuts(beta.double(), 999) == cuts(beta, 999)


def test_the_number_of_threads_changes_nothing():
    beta = torch.rand(3000, 101)
    many = besa_cut(beta, 4096), besa_cut(beta, 4096, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(many[0], besa_cut(beta, 4096))
        assert torch.equal(many[1], besa_cut(beta, 4096, seed=1))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", [None, 3])
def test_registration(seed):
    torch.library.opcheck(
        OP.overload, (torch.rand(4, 5), torch.full((4,), 7, dtype=torch.int32), seed, 2)
    )


def test_compiles_once_for_all_offsets():
    beta = torch.rand(9, 5)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda b, offset: besa_cut(b, 100, seed=1, offset=offset) + 1,
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for offset in range(3, 9):
        assert torch.equal(function(beta, offset), besa_cut(beta, 100, seed=1, offset=offset) + 1)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), 8), r"beta has shape \[3\]"),
        ((torch.zeros(3, 1), 8), "beta has 1 candidates; 2 to 4097"),
        ((torch.zeros(3, 4098), 8), "beta has 4098 candidates"),
        ((torch.zeros(3, 2), -1), "columns is -1"),
        ((torch.zeros(3, 2), 65_536), "columns is 65536"),
        ((torch.zeros(3, 2).bfloat16(), 8), "beta is torch.bfloat16"),
        ((torch.zeros(3, 2), torch.zeros(2, dtype=torch.int32)), r"columns has shape \[2\]"),
        ((torch.zeros(3, 2), torch.zeros(3)), "columns is torch.float32"),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(arguments, message, forced):
    with pytest.raises((ValueError, TypeError), match=message):
        besa_cut(*arguments, backend=forced)
