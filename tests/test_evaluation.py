"""Perplexity against plain transformers and the published figures of a real model."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, tokenize
from compressor.checkpoint import Checkpoint
from compressor.evaluation import perplexity
from compressor.texts import read_text


def test_equals_the_definition(any_family):
    sequences = [torch.randint(3, 120, (n,)) for n in (30, 12, 2)]
    model = AutoModelForCausalLM.from_pretrained(any_family).eval()
    with torch.no_grad():
        losses = [(model(s[None], labels=s[None]).loss.item(), len(s) - 1) for s in sequences]
    nll = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    found = perplexity(BlockStream(Checkpoint(any_family)), TokenSet(sequences))
    assert found["tokens"] == 41
    assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)


def test_dense_perplexity_of_a_real_model(stories):
    model, text = stories
    checkpoint = Checkpoint(model)
    tokens = tokenize(read_text(str(text)), checkpoint.tokenizer(), 512, selected="617:917")
    assert perplexity(BlockStream(checkpoint), tokens)["perplexity"] == pytest.approx(
        3.834, abs=1e-3
    )
