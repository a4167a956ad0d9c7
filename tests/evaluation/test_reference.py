"""Perplexity against plain transformers and the published figures of a real model."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.evaluation.reference import Reference, perplexity
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import load
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, tokenize
from compressor.writing.cuts import write


def test_equals_the_definition(any_family):
    sequences = [torch.randint(3, 120, (n,)) for n in (30, 12, 2)]
    model = AutoModelForCausalLM.from_pretrained(any_family).eval()
    with torch.no_grad():
        losses = [(model(s[None], labels=s[None]).loss.item(), len(s) - 1) for s in sequences]
        logs = torch.cat([model(s[None]).logits[0, :-1].log_softmax(-1) for s in sequences])
    nll = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    found = perplexity(BlockStream(Checkpoint(any_family)), TokenSet(sequences))
    assert found["tokens"] == 41
    assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert found["expected"] == pytest.approx(-(logs.exp() * logs).sum(-1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("rows", [5, 1000])
def test_beside_the_source(any_family, equal_layout, tmp_path, monkeypatch, rows):
    """KL divergence and agreement are those of the definition, on plain models' logits."""
    monkeypatch.setattr("compressor.evaluation.reference.logits_rows", lambda _: rows)
    source, small = Checkpoint(any_family), tmp_path / "small"
    kept = [{g: [*range(max(1, n // 2))] for g, n in units.items()} for units in source.block_units]
    if not source.family.cuts_heads or source.family.keeps_heads(source.config):
        kept = [own | {"attention": [*range(source.units["attention"])]} for own in kept]
    write(source, Plan(kept), small, equal_layout)
    sequences = [torch.randint(3, 120, (n,)) for n in (30, 12, 2)]
    models = [load(folder, torch.float32)[0] for folder in (any_family, small)]
    nll, kl, agreed = [], [], []
    with torch.no_grad():
        for ids in sequences:
            dense, cut = (m(ids[None]).logits[0, :-1].double().log_softmax(-1) for m in models)
            nll.append(-cut.gather(1, ids[1:, None]))
            kl.append((dense.exp() * (dense - cut)).sum(-1))
            agreed.append(dense.argmax(-1) == cut.argmax(-1))
    reference = Reference(BlockStream(source), TokenSet(sequences))
    found = reference.compared(BlockStream(Checkpoint(small)))
    assert found["perplexity"] == pytest.approx(torch.cat(nll).mean().exp().item(), rel=1e-4)
    assert found["kl"] == pytest.approx(torch.cat(kl).mean().item(), rel=1e-3, abs=1e-6)
    assert found["agreement"] == torch.cat(agreed).double().mean().item()
    assert reference.measured() == perplexity(BlockStream(source), TokenSet(sequences))
    itself, measured = reference.compared(BlockStream(source)), reference.measured()
    assert itself | {"expected": measured["expected"]} == measured | {"kl": 0, "agreement": 1}


def test_dense_perplexity_of_a_real_model(stories):
    model, text = stories
    checkpoint = Checkpoint(model)
    tokens = tokenize(read_text(str(text)), checkpoint.tokenizer(), 512, selected="617:917")
    assert perplexity(BlockStream(checkpoint), tokens)["perplexity"] == pytest.approx(
        3.834, abs=1e-3
    )
