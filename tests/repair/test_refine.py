"""Block-wise refinement: the held-back loss decides, in every case."""

import gc
import weakref

import pytest
import torch
from torch import nn

from compressor.blocks import BlockStream
from compressor.checkpoint import Checkpoint
from compressor.repair import refine as module
from compressor.repair.refine import Example, divergence, predictions, refine, step_size

FITTED, HELD = range(6), range(6, 8)


class Block(nn.Module):
    """A residual block with a parameter that is not trained; what it returns has no bound."""

    def __init__(self, size=8):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, hidden, scale, shift=0.0):
        return hidden + scale * nn.functional.silu(self.linear(hidden)) + shift


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block()


def examples(teacher, noise=0.0):
    """Batches with padding; what stands in the padding is far from anything."""
    torch.manual_seed(1)
    batches = []
    for _ in range(len(FITTED) + len(HELD)):
        hidden = torch.randn(3, 10, 8)
        mask = torch.arange(10) < torch.tensor([10, 7, 4])[:, None]
        with torch.no_grad():
            target = teacher(hidden, 2.0, shift=0.5) + noise * torch.randn(3, 10, 8)
        target[~mask] = 1e6
        batches.append(Example(hidden, (2.0,), {"shift": 0.5}, target, mask))
    return batches.__getitem__


def weights(block):
    return {"linear.weight": block.linear.weight.detach()}


def loss(block, found, example, batches) -> float:
    """The held-back loss, written out."""
    total = count = 0
    for i in batches:
        given = example(i)
        merged = {"linear.bias": block.linear.bias, **found}
        out = torch.func.functional_call(block, merged, (given.hidden, 2.0), {"shift": 0.5})
        for mine, aim, real in zip(
            *(x.flatten(0, 1) for x in (out, given.target, given.mask)), strict=True
        ):
            if real:
                total += ((mine - aim).square().sum() / aim.square().sum()).item()
                count += 1
    return total / count


def test_the_held_back_loss_falls_and_is_what_it_says(block):
    teacher = Block()
    teacher.linear.bias.data.copy_(block.linear.bias)
    example = examples(teacher, noise=0.1)
    before = {n: p.clone() for n, p in block.named_parameters()}
    found, losses = refine(block, weights(block), example, FITTED, HELD, epochs=40)
    assert losses[0] == pytest.approx(loss(block, weights(block), example, HELD), rel=1e-5)
    assert min(losses) == pytest.approx(loss(block, found, example, HELD), rel=1e-5)
    assert min(losses) < 0.5 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in block.named_parameters())


@pytest.mark.parametrize("rate", [0.05, 100.0])
def test_what_is_right_stays(block, rate):
    found, losses = refine(block, weights(block), examples(block), FITTED, HELD, rate=rate)
    assert torch.equal(found["linear.weight"], block.linear.weight)
    assert losses[0] == 0


def test_a_rate_that_is_too_high_is_lowered(block):
    example = examples(Block(), noise=0.1)
    found, losses = refine(block, weights(block), example, FITTED, HELD, rate=1000.0, epochs=12)
    assert losses[1] > losses[0]
    assert min(losses) < losses[0]
    assert found["linear.weight"].isfinite().all()


def test_training_is_in_float32_and_running_in_the_blocks_dtype(block):
    teacher = Block()
    block.bfloat16()
    batches = [examples(teacher)(i) for i in (*FITTED, *HELD)]
    batches = [Example(b.hidden.bfloat16(), b.args, b.keywords, b.target, b.mask) for b in batches]
    found, losses = refine(block, weights(block), batches.__getitem__, FITTED, HELD)
    assert found["linear.weight"].dtype == torch.float32
    assert not torch.equal(found["linear.weight"], found["linear.weight"].bfloat16().float())
    assert min(losses) < losses[0]


@pytest.mark.parametrize(("inputs", "share"), [(8, 1.0), (512, 1.0), (2048, 0.5), (8192, 0.25)])
def test_steps_shrink_with_the_root_of_the_inputs(inputs, share):
    assert step_size(torch.full((3, inputs), 2.0)) == pytest.approx(2 * share)


def test_same_input_same_output(block):
    example = examples(Block())
    first, second = (refine(block, weights(block), example, FITTED, HELD) for _ in range(2))
    assert torch.equal(first[0]["linear.weight"], second[0]["linear.weight"])
    assert first[1] == second[1]


def test_nothing_outlives_the_training(block, monkeypatch):
    """Moments and gradients are as large as a block, too large to wait for the garbage collector."""
    born, stepping = [], module.stepping

    def watched(parameter):
        optimizer = stepping(parameter)
        born.append((weakref.ref(optimizer), weakref.ref(parameter)))
        return optimizer

    monkeypatch.setattr(module, "stepping", watched)
    gc.disable()
    try:
        refine(block, weights(block), examples(Block(), 0.1), FITTED, HELD, rate=1000.0, epochs=3)
        assert len(born) > 1  # it ran away and began again
        assert [ref() for pair in born for ref in pair] == [None] * 2 * len(born)
    finally:
        gc.enable()


@pytest.mark.parametrize("rows", [3, 4, 11])
def test_predictions_are_measured_in_parts(llama, monkeypatch, rows):
    monkeypatch.setattr(module, "LOGITS_ROWS", 4)
    stream = BlockStream(Checkpoint(llama))
    torch.manual_seed(0)
    found, target = torch.randn(2, rows, stream.checkpoint.hidden_size)
    found.requires_grad_()
    with stream.outer(head=True) as model:
        parts = predictions(stream, model)(found, target)
        whole = divergence(stream.head(model, found), stream.head(model, target))
        torch.testing.assert_close(parts, whole)
        gradients = [torch.autograd.grad(x.sum(), found)[0] for x in (parts, whole)]
    torch.testing.assert_close(*gradients)


def test_divergence_is_that_of_the_distributions():
    torch.manual_seed(0)
    found, target = torch.randn(2, 7, 11, dtype=torch.float64)
    theirs, ours = (torch.distributions.Categorical(logits=x) for x in (target, found))
    expected = torch.distributions.kl_divergence(theirs, ours)
    torch.testing.assert_close(divergence(found, target), expected)
    assert divergence(found, found + 3).abs().max() < 1e-12
