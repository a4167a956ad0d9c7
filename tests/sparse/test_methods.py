"""Magnitude, Wanda and SparseGPT against their definitions, naively and in float64."""

import pytest
import torch

from compressor.errors import InputError
from compressor.model.block import gram, observe
from compressor.solvers.obs import cheapest_of_piece, cheapest_of_rows, correct, inverse_factor
from compressor.sparse.methods import corrected, magnitude, sparsegpt, wanda


def inputs_of(block) -> dict[str, torch.Tensor]:
    """What every projection reads, float64 [tokens, channels]."""
    seen: dict[str, list] = {name: [] for name in block.names}
    hooks = [
        block.layer.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).double())
        )
        for name in seen
    ]
    for i in range(block.count):
        block.run(i)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def naive_sparsegpt(weight, x, choose, damping=0.01):
    """Column after column by the definition: the inverse Hessian of the columns that are left, anew
    for each. choose(c, costs of the columns from c on) says which of column c's weights go.
    """
    weight = weight.double().clone()
    hessian = x.T @ x
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    for c in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[c:, c:])
        pruned = choose(c, weight, hessian)
        step = weight[:, c] / inverse[0, 0]
        weight[pruned, c:] -= step[pruned, None] * inverse[0]
        weight[pruned, c] = 0
    return weight


def costs(weight, hessian, begin):
    """[out, remaining] of pruning each remaining column next to those left of it being fixed."""
    remaining = [torch.linalg.inv(hessian[c:, c:])[0, 0] for c in range(begin, weight.shape[1])]
    return weight[:, begin:] ** 2 / torch.stack(remaining)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_magnitude_zeroes_the_smallest_of_each_matrix(open_block, any_family, sparsity):
    block, _ = open_block(any_family)
    for name, pruned in magnitude(block, sparsity).items():
        weight = block.weights[name]
        count = int(sparsity * weight.numel())
        assert int((pruned == 0).sum()) == count
        gone = pruned == 0
        assert torch.equal(pruned[~gone], weight[~gone])
        assert weight[gone].abs().max() <= weight[~gone].abs().min()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_wanda_zeroes_the_least_of_each_row_by_weight_times_input_norm(
    open_block, any_family, sparsity
):
    block, _ = open_block(any_family)
    inputs = inputs_of(block)
    for name, pruned in wanda(block, sparsity).items():
        weight = block.weights[name]
        importance = weight.double().abs() * inputs[name].square().sum(0).sqrt()
        count = int(sparsity * weight.shape[1])
        expected = weight.clone()
        for row, order in enumerate(importance.argsort(dim=1, stable=True)):
            expected[row, order[:count]] = 0
        assert torch.equal(pruned, expected)


@pytest.mark.parametrize("columns", [37, 128, 150])
def test_sparsegpt_is_the_column_by_column_definition(columns):
    torch.manual_seed(0)
    weight = torch.randn(6, columns)
    x = torch.randn(300, columns) @ (torch.eye(columns) + 0.1 * torch.randn(columns, columns))
    pieces = {}

    def choose(c, current, hessian):
        begin = c // 128 * 128
        if begin not in pieces:
            end = min(begin + 128, columns)
            cost = costs(current, hessian, begin)[:, : end - begin]
            gone = torch.zeros(cost.numel(), dtype=torch.bool)
            gone[cost.flatten().argsort()[: int(0.5 * cost.numel())]] = True
            pieces[begin] = gone.view_as(cost)
        return pieces[begin][:, c - begin]

    expected = naive_sparsegpt(weight, x.double(), choose)
    found = correct(weight, inverse_factor(gram(x), "it"), cheapest_of_piece(0.5))
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_rows_lose_their_cheapest_weights_wherever_they_lie():
    torch.manual_seed(1)
    weight, x = torch.randn(8, 150), torch.randn(400, 150)
    weight[:4, 128:] *= 1e-5  # in the second piece of 128 columns
    cuts = torch.tensor([0, 1, 20, 22, 60, 75, 149, 150], dtype=torch.int32)
    found = correct(weight, inverse_factor(gram(x), "it"), cheapest_of_rows(cuts))
    assert torch.equal((found == 0).sum(1), cuts.long())
    assert int((found[2:4, :128] == 0).sum()) <= 2
    assert torch.equal(found[0], weight[0])
    left = cuts.long().clone()
    pieces = {}

    def choose(c, current, hessian):
        begin = c // 128 * 128
        if begin not in pieces:
            cost = costs(current, hessian, begin)
            ranks = cost.argsort(dim=1).argsort(dim=1)
            pieces[begin] = (ranks < left[:, None])[:, : min(128, 150 - begin)]
            left.sub_(pieces[begin].sum(1))
        return pieces[begin][:, c - begin]

    expected = naive_sparsegpt(weight, x.double(), choose)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_correction_lowers_the_error_of_the_same_mask():
    torch.manual_seed(2)
    weight = torch.randn(16, 64)
    x = torch.randn(500, 64) @ torch.randn(64, 64)
    found = correct(weight, inverse_factor(gram(x), "it"), cheapest_of_rows(torch.full((16,), 32)))
    plain = weight * (found != 0)

    def error(pruned):
        return (x @ (pruned - weight).T).square().sum()

    assert error(found) < 0.75 * error(plain)


def test_channels_that_are_always_zero_go_first():
    torch.manual_seed(3)
    weight, x = torch.randn(5, 40), torch.randn(100, 40)
    x[:, [3, 17, 39]] = 0
    cuts = torch.full((5,), 3, dtype=torch.int32)
    found = correct(weight, inverse_factor(gram(x), "it"), cheapest_of_rows(cuts))
    assert (found[:, [3, 17, 39]] == 0).all()
    assert torch.equal(found[:, :3], weight[:, :3])


@pytest.mark.parametrize("bad", [torch.zeros(8, 8), torch.full((8, 8), torch.nan), -torch.eye(8)])
def test_second_moments_that_are_none_are_named(bad):
    with pytest.raises(InputError, match="The inputs of q_proj in block 3 have no positive"):
        inverse_factor(bad, "q_proj in block 3")


def test_sparsegpt_prunes_a_block_of_any_family(open_block, any_family):
    block, _ = open_block(any_family)
    inputs = inputs_of(block)
    for name, pruned in sparsegpt(block, 0.5).items():
        weight, x = block.weights[name], inputs[name]
        assert int((pruned == 0).sum()) == weight.numel() // 2
        by_magnitude = magnitude(block, 0.5)[name]
        error = (x @ (pruned - weight).double().T).square().sum()
        assert error < (x @ (by_magnitude - weight).double().T).square().sum()


def test_corrected_matrices_see_what_the_ones_before_them_feed_them(open_block, llama):
    block, _ = open_block(llama)
    cuts = {
        n: torch.full((len(w),), w.shape[1] // 2, dtype=torch.int32)
        for n, w in block.weights.items()
    }
    found = corrected(block, cuts)
    before_down = {n: w for n, w in found.items() if "down" not in n}
    grams = observe(block, gram, weights=before_down, readers=[["mlp.down_proj.weight"]])
    name = "mlp.down_proj.weight"
    factor = inverse_factor(grams[name], "it")
    again = correct(block.weights[name], factor, cheapest_of_rows(cuts[name]))
    assert torch.equal(found[name], again)
    dense = inverse_factor(observe(block, gram)[name], "it")
    other = correct(block.weights[name], dense, cheapest_of_rows(cuts[name]))
    assert not torch.equal(found[name], other)
