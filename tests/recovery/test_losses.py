"""The loss in chunks is the ordinary loss, and what is learned from a teacher is its divergence."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.recovery import losses
from compressor.recovery.data import IGNORED
from compressor.recovery.losses import Soft, differentiate, divergence, mean_loss, padded
from compressor.recovery.teacher import teach


@pytest.fixture
def model(any_family):
    """In float64; the embedding, which is the head of tied models, asks for no gradient."""
    found = AutoModelForCausalLM.from_pretrained(any_family, dtype=torch.float64)
    found.get_input_embeddings().requires_grad_(False)
    found.get_output_embeddings().requires_grad_(False)
    return found


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def predicted(examples) -> int:
    return sum(int(e.predicted.sum()) for e in examples)


def counted_logits(model, examples) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and next tokens of every counted position, one sequence at a time."""
    rows, targets = [], []
    for e in examples:
        rows.append(model(input_ids=e.ids[None]).logits[0, :-1][e.predicted])
        targets.append(e.ids[1:][e.predicted])
    return torch.cat(rows), torch.cat(targets)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_loss_and_gradient_are_the_ordinary_ones(model, examples, monkeypatch, chunk, rounding):
    """Answers only, several lengths padded together, in two parts of one step."""
    monkeypatch.setattr(losses, "LOGITS", chunk * model.config.vocab_size)
    count = predicted(examples)
    found = sum(differentiate(model, part, count) for part in (examples[:5], examples[5:]))
    ours = gradients(model)
    model.zero_grad()
    logits, targets = counted_logits(model, examples)
    expected = cross_entropy(logits, targets)
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=rounding, atol=0)
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=rounding)
    assert mean_loss(model, examples, 5) == pytest.approx(expected.item(), rel=rounding)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distillation_adds_up(model, examples, weight, rounding):
    """Against torch's own divergence with all of the vocabulary."""
    torch.manual_seed(0)
    logits, targets = counted_logits(model, examples)
    teacher = torch.randn_like(logits).log_softmax(-1)
    ours = logits.log_softmax(-1)
    expected = weight * (teacher.exp() * (teacher - ours)).sum(-1).mean()
    expected = expected + (1 - weight) * cross_entropy(logits, targets)
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    soft = Soft.of(teacher, 120)
    found = differentiate(model, examples, predicted(examples), soft, weight)
    torch.testing.assert_close(found, expected.detach(), rtol=rounding, atol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=rounding)


def test_a_few_tokens_and_the_rest_are_a_distribution():
    torch.manual_seed(0)
    logits = 3 * torch.randn(20, 50, dtype=torch.float64)
    for top in (1, 5, 49, 50, 80):
        soft = Soft.of(logits, top)
        assert soft.tokens.shape == (20, min(top, 50))
        torch.testing.assert_close(soft.logs.exp().sum(-1), torch.ones(20, dtype=torch.float64))


def test_the_divergence_of_a_few_tokens_is_a_lower_bound():
    torch.manual_seed(0)
    theirs, ours = (3 * torch.randn(20, 50, dtype=torch.float64) for _ in range(2))
    found = [divergence(ours, Soft.of(theirs, top)).item() for top in (1, 5, 20, 50)]
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    assert found == sorted(found)
    assert found[-1] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-12)
    for top in (1, 5, 50):
        assert divergence(theirs, Soft.of(theirs, top)).item() == pytest.approx(0, abs=1e-9)


def test_padding_is_ignored(examples):
    ids, labels = padded(examples, torch.device("cpu"))
    for row, label, e in zip(ids, labels, examples, strict=True):
        assert torch.equal(row[: len(e.ids)], e.ids)
        assert torch.equal(label[: len(e.ids)], e.labels) and (label[len(e.ids) :] == IGNORED).all()


@pytest.mark.parametrize("top", [4, 120])
def test_the_teacher_is_the_model_itself(any_family, examples, tmp_path, top):
    """Streamed, kept in files, read again in another order: the ordinary model's distributions."""
    stream = BlockStream(Checkpoint(any_family))
    teacher = teach(stream, examples, top, tmp_path / "teacher")
    model = AutoModelForCausalLM.from_pretrained(any_family, dtype="auto")
    chosen = [7, 2, 11]
    with torch.no_grad():
        logits, _ = counted_logits(model, [examples[i] for i in chosen])
    soft, expected = teacher.soft(chosen), Soft.of(logits, top)
    assert torch.equal(soft.tokens, expected.tokens)
    torch.testing.assert_close(soft.logs, expected.logs, rtol=1e-5, atol=1e-5)


def test_a_teacher_is_asked_once(llama, examples, tmp_path, monkeypatch):
    stream = BlockStream(Checkpoint(llama))
    (tmp_path / "teacher.unfinished").mkdir()  # of a run that was killed
    first = teach(stream, examples, 4, tmp_path / "teacher")
    monkeypatch.setattr(BlockStream, "logits", None)
    again = teach(stream, examples, 4, tmp_path / "teacher")
    assert torch.equal(first.soft([3]).logs, again.soft([3]).logs)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]
