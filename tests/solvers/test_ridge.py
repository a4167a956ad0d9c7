"""The regression and its record, against least squares and sums in float64."""

import pytest
import torch
from threaded_ranks import in_ranks

from compressor.config.repair import KINDS, closed_form
from compressor.errors import InputError
from compressor.solvers.ridge import Moments, rates, regress, ridge, wide

TOKENS, CHANNELS, OUTPUTS = 60, 12, 7


def problem(tokens=TOKENS, seed=0, noise=0.5):
    """Inputs, targets and present weights in float64; the targets follow other weights, noisily."""
    torch.manual_seed(99)
    mixing, truth, weight = (
        torch.randn(rows, CHANNELS, dtype=torch.float64) for rows in (CHANNELS, OUTPUTS, OUTPUTS)
    )
    torch.manual_seed(seed)
    inputs = torch.randn(tokens, CHANNELS, dtype=torch.float64) @ mixing
    targets = inputs @ truth.T + noise * torch.randn(tokens, OUTPUTS, dtype=torch.float64)
    return inputs, targets, weight


def sums(inputs, targets):
    return inputs.T @ inputs, targets.T @ inputs, targets.square().sum()


def solve(fitted, held, weight, grid):
    gram, cross, _ = sums(*fitted)
    return ridge(gram, cross, weight, *sums(*held), grid)


def direct(inputs, targets, weight, penalty):
    """argmin |T - A W'^T|^2 + penalty |W' - W|^2, by least squares with rows for the penalty."""
    rows = penalty**0.5 * torch.eye(CHANNELS, dtype=torch.float64)
    a, t = torch.cat((inputs, rows)), torch.cat((targets, rows @ weight.T))
    return torch.linalg.lstsq(a, t, driver="gelsd").solution.T


@pytest.mark.parametrize("relative", [1e-8, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("tokens", [TOKENS, CHANNELS - 5])
def test_equals_least_squares_with_the_penalty_as_rows(relative, tokens):
    inputs, targets, weight = problem(tokens)
    found, taken, _ = solve((inputs, targets), (inputs, targets), weight, [relative])
    penalty = relative * inputs.square().sum().item() / CHANNELS
    assert taken == relative
    tolerance = 1e-4 if relative < 1e-3 and tokens < CHANNELS else 1e-8
    expected = direct(inputs, targets, weight, penalty)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_limits_are_the_old_weights_and_least_squares():
    inputs, targets, weight = problem()
    fitted = (inputs, targets)
    kept, _, _ = solve(fitted, fitted, weight, [1e12])
    torch.testing.assert_close(kept, weight, rtol=1e-6, atol=1e-6)
    free, _, _ = solve(fitted, fitted, weight, [1e-14])
    expected = torch.linalg.lstsq(inputs, targets).solution.T
    torch.testing.assert_close(free, expected, rtol=1e-6, atol=1e-6)


def test_errors_are_those_of_the_held_back_tokens_and_the_smallest_is_taken():
    grid = [1e-6, 1e-3, 1e-1, 1.0, 10.0]
    *fitted, weight = problem(16, noise=4.0)
    *held, _ = problem(40, seed=1, noise=4.0)

    def error(w):
        return (held[1] - held[0] @ w.T).square().sum().item()

    found, taken, errors = solve(fitted, held, weight, grid)
    penalties = [g * fitted[0].square().sum().item() / CHANNELS for g in grid]
    by_hand = [error(w) for w in (weight, *(direct(*fitted, weight, p) for p in penalties))]
    assert errors == pytest.approx(by_hand, rel=1e-6)
    best = by_hand.index(min(by_hand))
    assert 1 < best < len(grid)  # neither the least nor the most damping
    assert taken == grid[best - 1]
    assert error(found) == pytest.approx(by_hand[best], rel=1e-6)


def test_many_outputs_are_judged_by_combinations_of_them(monkeypatch):
    """Nearly as by all of them, one that dwarfs the others included; what is returned is exact."""
    grid = [1e-6, 1e-3, 1e-1, 1.0, 10.0]
    torch.manual_seed(1)
    spread = torch.randn(400, OUTPUTS, dtype=torch.float64)
    spread[0] *= 100
    *fitted, weight = problem(16, noise=4.0)
    *held, _ = problem(40, seed=1, noise=4.0)
    wide = [(x, t @ spread.T) for x, t in (fitted, held)]
    expected, taken, exact = solve(*wide, spread @ weight, grid)
    monkeypatch.setattr("compressor.solvers.ridge.SKETCH", 199)
    found, again, errors = solve(*wide, spread @ weight, grid)
    assert again == taken
    assert torch.equal(found, expected)
    best = 1 + grid.index(taken)
    assert errors[0] == exact[0] and errors[best] == pytest.approx(exact[best], rel=1e-9)
    assert errors != exact and errors == pytest.approx(exact, rel=0.3)
    kept, none, _ = solve(fitted, (held[0], held[0] @ weight.T), weight, [1e-3])
    assert none is None and kept is weight


@pytest.mark.parametrize("world", [2, 3, OUTPUTS + 2])
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_ranks_find_what_one_process_finds(monkeypatch, world, many):
    """Each its part of the outputs, which may be none; all have the same bits."""
    if many:
        monkeypatch.setattr("compressor.solvers.ridge.SKETCH", 3)
    grid = [1e-6, 1e-3, 1e-1, 1.0, 10.0]
    *fitted, weight = problem(16, noise=4.0)
    held, (gram, cross, _) = problem(40, seed=1, noise=4.0)[:2], sums(*fitted)
    expected, taken, errors = solve(fitted, held, weight, grid)

    def work(ranks):
        return ridge(gram.clone(), cross.clone(), weight, *sums(*held), grid, ranks)

    for found, theirs, said in (every := in_ranks(world, work)):
        assert theirs == taken and said == pytest.approx(errors, rel=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        assert torch.equal(found, every[0][0]) and said == every[0][2]


def test_ranks_agree_that_present_weights_stay():
    inputs, targets, weight = problem()
    held = sums(inputs, inputs @ weight.T + 0.01)
    gram, cross, _ = sums(inputs, targets)

    def work(ranks):
        return ridge(gram.clone(), cross.clone(), weight, *map(torch.clone, held), [1e-3], ranks)

    assert all(taken is None and kept is weight for kept, taken, _ in in_ranks(2, work))


@pytest.mark.parametrize("channels", [1, 4, 5, 13])
def test_a_gram_matrix_in_panels(monkeypatch, channels):
    monkeypatch.setattr("compressor.solvers.ridge.PANEL", 4)
    torch.manual_seed(0)
    inputs = torch.randn(3, 30, channels, dtype=torch.float64)
    found = Moments.empty(channels, 0, inputs.device, torch.float64)
    for count in range(3):  # between sums the whole matrix may be read
        found.add(inputs[count], inputs[count, :, :0])
        rows = inputs[: count + 1].flatten(0, 1)
        torch.testing.assert_close(found.gram, rows.T @ rows)


def test_weights_stay_where_every_lambda_is_worse():
    inputs, targets, weight = problem()
    held = (inputs, inputs @ weight.T + 0.01)
    found, taken, errors = solve((inputs, targets), held, weight, [1e-3, 1.0])
    assert taken is None and found is weight
    assert min(errors[1:]) > errors[0] > 0


def test_nothing_is_tried_where_nothing_is_wrong():
    inputs, _, weight = problem()
    exact = (inputs.float(), inputs.float() @ weight.float().T)
    found, taken, errors = solve(exact, exact, weight.float(), [1e-3, 1.0])
    assert taken is None and len(errors) == 1
    assert torch.equal(found, weight.float())


def test_zero_channels_keep_their_weights_and_zero_inputs_keep_all():
    inputs, targets, weight = problem()
    inputs[:, 3] = 0
    found, taken, _ = solve((inputs, targets), (inputs, targets), weight, [1e-3])
    assert taken == 1e-3
    torch.testing.assert_close(found[:, 3], weight[:, 3])
    nothing = torch.zeros_like(inputs)
    found, taken, _ = solve((nothing, targets), (nothing, targets), weight, [1e-3])
    assert taken is None and found is weight


def test_lambdas_too_small_for_the_dtype_are_passed_over():
    torch.manual_seed(0)
    inputs = torch.randn(200, 1).expand(200, 40) + 1e-5 * torch.randn(200, 40)
    targets, weight = torch.randn(200, 3) + inputs[:, :3], torch.randn(3, 40)
    found, taken, errors = solve((inputs, targets), (inputs, targets), weight, [1e-12, 1e-2])
    assert errors[1] == float("inf") and taken == 1e-2
    assert found.isfinite().all()


def test_grams_and_weights_are_left_as_they_were_and_crosses_become_residuals():
    inputs, targets, weight = problem()
    given = [*sums(inputs, targets)[:2], *sums(inputs, targets)]
    before = [x.clone() for x in given]
    ridge(given[0], given[1], weight, *given[2:], [1e-3, 1.0])
    left = [0, 2, 4]
    assert all(torch.equal(given[i], before[i]) for i in left)
    for cross, gram in ((1, 0), (3, 2)):
        torch.testing.assert_close(given[cross], before[cross] - weight @ before[gram])


def test_moments_of_bfloat16_are_exact_and_leave_no_setting_behind():
    torch.manual_seed(0)
    inputs, targets = torch.randn(500, 64), torch.randn(500, 40)
    found = Moments.empty(64, 40, torch.device("cpu"), torch.bfloat16)
    found.add(inputs, targets)
    gram, cross, energy = sums(*(x.bfloat16().double() for x in (inputs, targets)))
    torch.testing.assert_close(found.gram.double(), gram, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.cross.double(), cross, rtol=1e-5, atol=1e-3)
    assert found.energy.item() == pytest.approx(energy.item(), rel=1e-6)
    assert torch.equal(found.gram, found.gram.T)
    product, exact = inputs.T @ inputs, inputs.double().T @ inputs.double()
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-3)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("part", [0, 1])
def test_sums_that_are_not_finite(part, value):
    inputs, targets, _ = (x.float() for x in problem())
    found = Moments.empty(CHANNELS, OUTPUTS, inputs.device)
    assert found.finite
    (inputs, targets)[part][7, 2] = value
    found.add(inputs, targets)
    assert found.finite == (part == 1 and value == 1e30)
    nothing = Moments.empty(CHANNELS, 0, inputs.device)
    nothing.add(inputs, targets[:, :0])
    assert nothing.finite == (part == 1)


def test_moments_do_not_depend_on_the_split():
    inputs, targets, _ = (x.float() for x in problem())
    whole, parts = (Moments.empty(CHANNELS, OUTPUTS, torch.device("cpu")) for _ in range(2))
    whole.add(inputs, targets)
    for a, t in zip(inputs.split(17), targets.split(17), strict=True):
        parts.add(a, t)
    for found in (whole, parts):
        gram, cross, energy = sums(inputs.double(), targets.double())
        torch.testing.assert_close(found.gram.double(), gram, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found.cross.double(), cross, rtol=1e-5, atol=1e-3)
        assert found.energy.item() == pytest.approx(energy.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("repair", "without"),
    [("refine", "ridge"), *((name, name) for name in KINDS if name != "refine")],
)
def test_every_kind_has_a_closed_form(repair, without):
    assert closed_form(repair) == without


def batches(noise: float, sizes=(50, 70, 40)):
    torch.manual_seed(0)
    truth = torch.randn(3, 6, dtype=torch.float64)
    inputs = [torch.randn(n, 6, dtype=torch.float64) for n in sizes]
    return [(x, x @ truth.T + noise * torch.randn(len(x), 3).double()) for x in inputs], truth


def test_new_parameters_and_what_is_recorded():
    pairs, truth = batches(0.1)
    present = truth + 0.5
    found, record = regress(iter(pairs), 2, present, torch.float64, [1e-3, 1e9], "here")
    x, t = (torch.cat(parts) for parts in zip(*pairs[:2], strict=True))
    penalty = 1e-3 * x.square().sum() / 6 * torch.eye(6).double()
    expected = present + (t - x @ present.T).T @ x @ torch.linalg.inv(x.T @ x + penalty)
    torch.testing.assert_close(found, expected)
    assert record["lambda"] == 1e-3
    x, t = pairs[2]
    for key, weight in (("before", present), ("after", expected)):
        share = (t - x @ weight.T).square().sum() / t.square().sum()
        assert record[key] == pytest.approx(share.item())


def test_present_ones_that_are_better_stay():
    pairs, truth = batches(0.0)
    present = truth + 1e-3
    pairs[:2] = [(x, -t) for x, t in pairs[:2]]
    found, record = regress(iter(pairs), 2, present, torch.float64, [1e-3, 1.0], "here")
    assert found is None and record["lambda"] is None and record["before"] == record["after"] > 0


def test_what_is_right_has_no_record():
    pairs, truth = batches(0.0)
    assert regress(iter(pairs), 2, truth, torch.float64, [1e-3], "here") == (None, None)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("part", [0, 1])
def test_activations_that_are_not_finite(batch, part):
    pairs, truth = batches(0.0)
    pairs[batch][part][3, 1] = float("inf")
    with pytest.raises(InputError, match="activations of block 2 here are"):
        regress(iter(pairs), 2, truth, torch.float64, [1e-3], "block 2 here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rates_are_in_float32_or_better(dtype):
    stream = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=dtype)
    exact = torch.promote_types(dtype, torch.float32)
    assert wide(stream).dtype == rates(stream).dtype == exact
    expected = torch.tensor([[12.5**-0.5], [1e6]], dtype=exact)
    torch.testing.assert_close(rates(stream), expected)
