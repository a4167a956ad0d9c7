"""BESA's objective against the eager construction, and what learning must keep to."""

import prodigyopt
import pytest
import torch

from compressor.config.sparse import Learning
from compressor.errors import InputError
from compressor.kernels.bench import published_besa
from compressor.kernels.besa_cut import besa_cut
from compressor.model.activations import Activations
from compressor.model.block import relative_error
from compressor.sparse.besa import (
    CANDIDATES,
    PENALTY,
    Groups,
    Objective,
    begin,
    distribution,
    learn,
    make_optimizer,
    shuffled,
)
from compressor.sparse.budget import budget, candidates


def weights_of(block) -> int:
    return sum(w.numel() for w in block.weights.values())


def eager_loss(block, targets, groups, theta, sequence, sparsity, parity, orders, cuts=None):
    """The released program's loss, written out: float64, one matrix after the other, no kernels."""
    logits = torch.sigmoid(theta) if parity else theta
    beta = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    alpha = sum(beta[:, d] * (d / 100) for d in range(101))
    masked, start, removed = {}, 0, 0.0
    for count, (name, weight) in zip(groups.counts, block.weights.items(), strict=True):
        own = beta[start : start + count]
        masked[name] = published_besa.published_mask(weight, orders[name], own, cuts and cuts[name])
        removed = removed + alpha[start : start + count].mean() * weight.numel()
        start += count
    output, target = block.run(sequence, masked)[0], targets.get(sequence, block.device)[0]
    norms = torch.sqrt(sum(row**2 for row in target))
    error = (((output - target) / norms) ** 2).sum() / target.shape[1]
    return error + 5 * ((removed / weights_of(block) - sparsity) / sparsity) ** 2


@pytest.mark.parametrize("sharing", ["row", "layer"])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_loss_and_gradient_are_the_eager_constructions(
    open_block, ranked, any_family, sharing, parity, sampled
):
    block, targets = open_block(any_family, torch.float64)
    ranks = ranked(block)
    groups = Groups(block.weights, sharing)
    objective = Objective(block, ranks, targets, groups, 0.6, parity)
    torch.manual_seed(0)
    theta = torch.randn(len(groups.sizes), CANDIDATES, dtype=torch.float64, requires_grad=True)
    loss = objective(theta, 2, (3, 4) if sampled else None)
    (found,) = torch.autograd.grad(loss, theta)
    orders = {name: torch.argsort(r.to(torch.int32), dim=1) for name, r in ranks.items()}
    beta = distribution(theta.detach(), parity)
    matrices = zip(block.weights.values(), groups.counts, strict=True)
    columns = [weight.shape[1] for weight, count in matrices for _ in range(count)]
    draw = {"seed": 3, "offset": 4} if sampled else {}
    cut = besa_cut(beta, torch.tensor(columns, dtype=torch.int32), **draw)
    cuts = groups.by_matrix(cut)
    theirs = theta.detach().clone().requires_grad_()
    wanted = eager_loss(block, targets, groups, theirs, 2, 0.6, parity, orders, cuts)
    (gradient,) = torch.autograd.grad(wanted, theirs)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    assert (found - gradient).norm() <= 1e-10 * gradient.norm()


def test_the_error_is_the_mean_of_the_features_relative_errors():
    torch.manual_seed(0)
    output, target = torch.randn(2, 1, 9, 5, dtype=torch.float64)
    target *= torch.tensor([1, 10, 30, 0.1, 5.0])
    wanted = [
        ((output[0, :, h] - target[0, :, h]) ** 2).sum() / (target[0, :, h] ** 2).sum()
        for h in range(5)
    ]
    torch.testing.assert_close(relative_error(output, target), sum(wanted) / 5)
    # A feature that is all but zero would decide alone; it counts as a millionth of the mean instead.
    target[..., 0] = 0
    assert relative_error(target + 1e-9, target) < 1e-12


@pytest.mark.parametrize("sharing", ["row", "layer"])
@pytest.mark.parametrize("target", [0.05, 0.5, 0.7, 0.9])
def test_the_budget_is_met_exactly(open_block, ranked, any_family, sharing, target):
    block, targets = open_block(any_family)
    zeros = budget(weights_of(block), target)
    cuts = learn(block, ranked(block), targets, zeros, Learning(sharing))
    assert sum(int(cut.sum()) for cut in cuts.values()) == zeros
    for name, cut in cuts.items():
        rows, columns = block.weights[name].shape
        assert cut.shape == (rows,) and 0 <= int(cut.min()) <= int(cut.max()) <= columns
        if sharing == "layer":
            assert int(cut.max()) - int(cut.min()) <= 1


def test_learning_lowers_the_error(open_block, ranked, llama):
    block, targets = open_block(llama, sequences=40)
    # Half of the rows of two matrices hardly matter to the block's output.
    for name in ("mlp.down_proj.weight", "self_attn.v_proj.weight"):
        block.weights[name][::2] *= 0.02
    for i in range(block.count):
        targets.put(i, block.run(i))
    ranks, zeros = ranked(block), budget(weights_of(block), 0.5)

    def error(cuts) -> float:
        masked = {
            name: torch.where(ranks[name].to(torch.int32) < cut[:, None], 0, block.weights[name])
            for name, cut in cuts.items()
        }
        found = [
            relative_error(block.run(i, masked), targets.get(i, block.device)) for i in range(8)
        ]
        return float(sum(found) / 8)

    learned = learn(block, ranks, targets, zeros, Learning())
    wanda = {
        name: torch.full_like(cut, block.weights[name].shape[1] // 2)
        for name, cut in learned.items()
    }
    assert error(learned) < 0.8 * error(wanda)
    down = learned["mlp.down_proj.weight"].float()
    assert down[::2].mean() > down[1::2].mean() + 5


def test_parity_has_the_programs_formulas(open_block, ranked, llama):
    """Start, smoothing, optimizer, penalty and end, in a loop of its own in float64."""
    block, targets = open_block(llama, torch.float64, sequences=16)
    ranks = ranked(block)
    groups = Groups(block.weights, "row")
    orders = {name: torch.argsort(r.to(torch.int32), dim=1) for name, r in ranks.items()}
    theta = torch.zeros(len(groups.sizes), 101, dtype=torch.float64, requires_grad=True)
    optimizer = prodigyopt.Prodigy([theta], lr=1.0, d_coef=5.0)
    for i in shuffled(16, 11):
        optimizer.zero_grad()
        cuts = {
            name: besa_cut(b, block.weights[name].shape[1])
            for name, b in groups.by_matrix(torch.softmax(torch.sigmoid(theta.detach()), 1)).items()
        }
        eager_loss(block, targets, groups, theta, i, 0.4, True, orders, cuts).backward()
        optimizer.step()
    alpha = torch.softmax(torch.sigmoid(theta.detach()), 1) @ candidates(101, theta.detach())
    assert (alpha - 0.5).abs().max() > 0.02  # it has moved
    options = Learning("row", parity=True, optimizer="prodigy")
    zeros = budget(weights_of(block), 0.4)
    cuts = learn(block, ranks, targets, zeros, options, 11)
    for name, own in groups.by_matrix(alpha).items():
        exact = own * block.weights[name].shape[1]
        near_whole = (exact - exact.round()).abs() < 1e-3  # either side of it is right in float32
        assert (cuts[name] == exact.floor())[~near_whole].all()
        assert (cuts[name] - exact).abs().max() <= 1.001


def test_parity_starts_at_zero_and_uses_the_published_settings():
    groups = Groups({"a": torch.empty(4, 9)}, "row")
    theta = begin(groups, 9, parity=True)
    assert torch.equal(theta, torch.zeros(4, 101))
    torch.testing.assert_close(distribution(theta, True), torch.full((4, 101), 1 / 101))
    adamw = make_optimizer(theta.requires_grad_(), Learning(parity=True))
    assert adamw.param_groups[0]["lr"] == 1e-2
    assert PENALTY == 5
    for sharing, coefficient in (("row", 5), ("layer", 50)):
        prodigy = make_optimizer(theta, Learning(sharing, True, "prodigy"))
        assert prodigy.param_groups[0]["lr"] == 1
        assert prodigy.param_groups[0]["d_coef"] == coefficient


def test_samples_and_order_follow_the_seed(open_block, ranked, llama):
    block, targets = open_block(llama, sequences=12)
    ranks, zeros = ranked(block), budget(weights_of(block), 0.5)

    def learned(seed: int, sampling: str) -> torch.Tensor:
        cuts = learn(block, ranks, targets, zeros, Learning(sampling=sampling), seed)
        return torch.cat(list(cuts.values()))

    assert torch.equal(learned(1, "categorical"), learned(1, "categorical"))
    assert not torch.equal(learned(1, "categorical"), learned(2, "categorical"))
    assert not torch.equal(learned(1, "categorical"), learned(1, "none"))
    assert torch.equal(learned(1, "none"), learned(1, "none"))
    assert not torch.equal(learned(1, "none"), learned(2, "none"))


def test_a_loss_that_is_not_finite_names_the_block(open_block, ranked, llama):
    block, targets = open_block(llama)
    ranks = ranked(block)
    targets.put(3, torch.full_like(targets.get(3, block.device), torch.inf))
    with pytest.raises(InputError, match=r"The loss of block 1 is nan at step \d"):
        learn(block, ranks, targets, 100, Learning())


def test_a_block_of_zeros_is_named(open_block, ranked, llama):
    block, targets = open_block(llama)
    zero = Activations()
    for i in range(block.count):
        zero.put(i, torch.zeros_like(targets.get(i, block.device)))
    with pytest.raises(InputError, match="All outputs of block 1 are zero"):
        learn(block, ranked(block), zero, 100, Learning())
