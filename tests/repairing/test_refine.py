"""Block-wise refinement: the held-back loss decides, in every case."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.repairing import refine as module
from compressor.repairing.refine import (
    RATES,
    SHARES,
    Course,
    Example,
    Schedule,
    alone,
    refine,
    relative_distance,
    step_size,
)
from compressor.text.tokens import Batch

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
        batch = Batch(torch.zeros_like(mask, dtype=torch.int64), mask)
        batches.append(Example(hidden, (2.0,), {"shift": 0.5}, target, batch))
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
            *(x.flatten(0, 1) for x in (out, given.target, given.batch.mask)), strict=True
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
    found, outcome = refine(
        block, weights(block), example, FITTED, HELD, schedule=Schedule(epochs=40)
    )
    assert outcome.losses[0] == pytest.approx(loss(block, weights(block), example, HELD), rel=1e-5)
    assert outcome.after == pytest.approx(loss(block, found, example, HELD), rel=1e-5)
    assert outcome.after <= min(outcome.losses) and len(outcome.losses) == 41
    assert outcome.after < 0.5 * outcome.losses[0]
    assert all(torch.equal(p, before[n]) for n, p in block.named_parameters())


def trained_rates(monkeypatch) -> list[tuple[float, int]]:
    """Of every training begun from now on its rate, and the number of its steps."""
    seen, trained = [], Course.trained

    def watched(course, rate, orders):
        seen.append((rate, sum(map(len, orders))))
        return trained(course, rate, orders)

    monkeypatch.setattr(Course, "trained", watched)
    return seen


@pytest.mark.parametrize("rates", [(0.05,), (100.0, 25.0), RATES])
def test_where_nothing_is_to_be_gained_the_trials_are_all(block, monkeypatch, rates):
    seen = trained_rates(monkeypatch)
    given = weights(block)
    fitted, held = range(160), range(160, 162)
    one = examples(block)
    found, outcome = refine(
        block, given, lambda i: one(i % 8), fitted, held, schedule=Schedule(rates=rates)
    )
    assert torch.equal(found["linear.weight"], block.linear.weight)
    assert outcome.losses == [0] and outcome.after == 0
    assert outcome.rate is None and outcome.share is None
    assert seen == [(rate, 20) for rate in outcome.trials]


def test_a_gain_too_small_to_wait_for_is_no_gain(block, monkeypatch):
    example = examples(Block(), noise=0.1)
    _, outcome = refine(block, weights(block), example, FITTED, HELD)
    gain = 1 - min(outcome.trials.values()) / outcome.losses[0]
    assert gain > 0 and len(outcome.losses) == 2
    monkeypatch.setattr(module, "WORTHWHILE", 1.1 * gain)
    found, left = refine(block, weights(block), example, FITTED, HELD)
    assert left.trials == outcome.trials and left.losses == outcome.losses[:1]
    assert torch.equal(found["linear.weight"], block.linear.weight)


@pytest.mark.parametrize("gain", [True, False])
def test_what_is_always_trained_is_trained_at_the_best_trials_rate(block, monkeypatch, gain):
    """However little the trials gain; what is worse on held-back text is still not taken."""
    tries = iter([0.5, 0.4] if gain else [1.2, 1.1])
    monkeypatch.setattr(Course, "tried", lambda *_: next(tries))
    seen = trained_rates(monkeypatch)
    given, example = weights(block), examples(Block(), 0.1) if gain else examples(block)
    found, outcome = refine(
        *(block, given, example, FITTED, HELD),
        schedule=Schedule(rates=(0.02, 0.005), epochs=4, always=True),
    )
    assert seen == [(0.005, 4 * len(FITTED))] and outcome.rate == 0.005
    assert len(outcome.losses) == 5
    assert gain == (not torch.equal(found["linear.weight"], given["linear.weight"]))
    assert gain == (outcome.after < outcome.losses[0])


@pytest.mark.parametrize("rate", [1.0, 1000.0])
def test_a_block_that_a_rate_breaks_is_trained_at_a_lower_one(block, rate):
    """Near its teacher, as a block is after the closed form, far steps lead away from it."""
    teacher = Block()
    teacher.load_state_dict(block.state_dict())
    teacher.linear.weight.data += 0.003 * torch.randn(8, 8)
    rates = (rate, *RATES)
    found, outcome = refine(
        block,
        weights(block),
        examples(teacher),
        FITTED,
        HELD,
        schedule=Schedule(rates=rates, epochs=12),
    )
    assert outcome.trials[rate] > outcome.losses[0]
    assert min(outcome.trials, key=outcome.trials.get) < rate and outcome.rate < rate
    assert outcome.after < 0.5 * outcome.losses[0]
    assert found["linear.weight"].isfinite().all()


def test_trials_end_with_the_first_that_is_worse(block):
    example = examples(Block())
    rates = (0.05, 0.0001, 0.00001)
    _, outcome = refine(
        block, weights(block), example, FITTED, HELD, schedule=Schedule(rates=rates)
    )
    assert [*outcome.trials] == [0.05, 0.0001] and outcome.rate == 0.05


@pytest.mark.parametrize(
    ("batches", "epochs", "rate"),
    [(16, 1, 0.001), (160, 1, 0.002), (16, 8, 0.002), (160, 64, 0.005)],
)
def test_a_long_training_goes_further_than_its_trial_but_not_beyond_the_first_rate(
    block, monkeypatch, batches, epochs, rate
):
    tries = iter([0.5, 0.1, 0.2])
    monkeypatch.setattr(Course, "tried", lambda *_: next(tries))
    seen = []
    monkeypatch.setattr(Course, "trained", lambda _, rate, orders: seen.append(rate) or [{}])
    monkeypatch.setattr(Course, "held_back", lambda *_: 1.0)
    refine(
        block,
        weights(block),
        None,
        range(batches),
        HELD,
        schedule=Schedule(rates=(0.005, 0.001, 0.0002), epochs=epochs),
    )
    assert seen == pytest.approx([rate])


def test_of_too_long_a_way_a_part_is_taken(block, monkeypatch):
    monkeypatch.setattr(Course, "tried", lambda *_: 0.0)
    teacher = Block()
    teacher.load_state_dict(block.state_dict())
    teacher.linear.weight.data += 0.1 * torch.randn(8, 8)
    example = examples(teacher)
    found, outcome = refine(
        block, weights(block), example, FITTED, HELD, schedule=Schedule(rates=(0.4,))
    )
    assert outcome.share in SHARES and outcome.share < 1
    assert outcome.after < min(outcome.losses)
    assert outcome.after == pytest.approx(loss(block, found, example, HELD), rel=1e-5)


@pytest.mark.parametrize(("batches", "longest"), [(1, 0.02), (4, 0.02), (8, 0.0175), (200, 0.0181)])
def test_the_rate_rises_within_the_first_quarter_and_falls_to_nothing(
    block, monkeypatch, batches, longest
):
    seen, step = [], torch.optim.AdamW.step

    def watched(optimizer, *given):
        seen.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    one = examples(Block())
    course = Course(block, weights(block), lambda i: one(i % 8), HELD, relative_distance)
    course.sizes = {"linear.weight": 1.0}
    [*_] = course.trained(0.02, [[*range(batches)]])
    assert len(seen) == batches and max(seen) == pytest.approx(longest, rel=1e-2)
    assert seen.index(max(seen)) <= batches / 4
    assert seen[-1] == pytest.approx(0.02 / batches, rel=1e-3)


def test_training_is_in_float32_and_the_loss_of_what_is_stored(block):
    """bf16 weights run in float32: what is judged is what will be written, not what ran."""
    teacher = Block()
    given = {n: w.bfloat16() for n, w in weights(block).items()}
    block.linear.weight.data = given["linear.weight"].float()
    example = examples(teacher)
    found, outcome = refine(block, given, example, FITTED, HELD, schedule=Schedule(epochs=3))
    assert found["linear.weight"].dtype == torch.bfloat16
    assert outcome.after < outcome.losses[0]
    stored = {n: w.float() for n, w in found.items()}
    assert outcome.after == pytest.approx(loss(block, stored, example, HELD), rel=1e-6)
    course = Course(block, given, example, HELD, relative_distance)
    (moved,) = course.trained(0.02, [[*FITTED]])
    assert moved["linear.weight"].dtype == torch.float32
    assert not torch.equal(moved["linear.weight"], moved["linear.weight"].bfloat16().float())


def test_a_block_runs_in_its_own_dtype(block):
    block.bfloat16()
    batches = [examples(Block())(i) for i in (*FITTED, *HELD)]
    batches = [Example(b.hidden.bfloat16(), b.args, b.keywords, b.target, b.batch) for b in batches]
    given = {n: w.float() for n, w in weights(block).items()}
    found, outcome = refine(block, given, batches.__getitem__, FITTED, HELD)
    assert found["linear.weight"].dtype == torch.float32
    assert outcome.after < outcome.losses[0]


def test_a_loss_that_is_no_number_is_never_taken(block):
    batches = [examples(block)(i) for i in (*FITTED, *HELD)]
    batches[0].target[0, 0] = torch.nan
    found, outcome = refine(block, weights(block), batches.__getitem__, FITTED, HELD)
    assert torch.equal(found["linear.weight"], block.linear.weight)
    assert json.loads(json.dumps(outcome.told, allow_nan=False)) == {
        "losses": [0.0],
        "after": 0.0,
        "trials": [{"rate": rate, "loss": None} for rate in RATES],
        "rate": None,
        "share": None,
    }


@pytest.mark.parametrize(("inputs", "share"), [(8, 1.0), (512, 1.0), (2048, 0.5), (8192, 0.25)])
def test_steps_shrink_with_the_root_of_the_inputs(inputs, share):
    assert step_size(torch.full((3, inputs), 2.0)) == pytest.approx(2 * share)


def test_same_input_same_output(block):
    example = examples(Block())
    first, second = (refine(block, weights(block), example, FITTED, HELD) for _ in range(2))
    assert torch.equal(first[0]["linear.weight"], second[0]["linear.weight"])
    assert first[1] == second[1]


@pytest.mark.parametrize("every", [1, 2])
def test_steps_in_parts_are_the_same_steps(block, every):
    """Also where a step looks at every other token, and a part has an odd number of them."""
    whole = examples(Block(), 0.5)

    def part(i: int) -> Example:
        of = whole(i // 3)
        batch = of.batch.parts(10)[i % 3]  # of one sequence, of 10, 7 or 4 tokens
        rows = slice(i % 3, i % 3 + 1), slice(batch.ids.shape[1])
        return replace(of, hidden=of.hidden[rows], target=of.target[rows], batch=batch)

    found = []
    for example, parts in (whole, alone), (part, lambda step: range(3 * step, 3 * step + 3)):
        schedule = Schedule(every=every, parts=parts)
        course = Course(block, weights(block), example, HELD, relative_distance, schedule)
        (moved,) = course.trained(0.02, [[*FITTED]])
        found.append(moved["linear.weight"].detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_nothing_outlives_the_training(block, monkeypatch):
    """Moments and gradients are as large as a block, too large to wait for the garbage collector."""
    born, stepping = [], module.stepping

    def watched(parameter, take):
        assert [ref() for pair in born for ref in pair] == [None] * 2 * len(born)
        optimizer = stepping(parameter, take)
        born.append((weakref.ref(optimizer), weakref.ref(parameter)))
        return optimizer

    monkeypatch.setattr(module, "stepping", watched)
    gc.disable()
    try:
        refine(
            block, weights(block), examples(Block(), 0.1), FITTED, HELD, schedule=Schedule(epochs=3)
        )
        assert len(born) > 2  # the trials' and the training's
        assert [ref() for pair in born for ref in pair] == [None] * 2 * len(born)
    finally:
        gc.enable()
