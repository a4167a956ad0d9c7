"""Distances of a block's output from its aim, and of the predictions that are made of it."""

import pytest
import torch
from torch import nn

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.repairing import losses as module
from compressor.repairing.losses import divergence, looked_at, predictions


@pytest.mark.parametrize("rows", [3, 4, 11])
def test_predictions_are_measured_in_parts(llama, monkeypatch, rows):
    monkeypatch.setattr(module, "logits_rows", lambda _: 4)
    stream = BlockStream(Checkpoint(llama))
    torch.manual_seed(0)
    found, target = torch.randn(2, rows, stream.checkpoint.hidden_size)
    with stream.outer(head=True) as model:
        measured = predictions(stream, model)
        whole = divergence(stream.head(model, found), stream.head(model, target))
        torch.testing.assert_close(measured(found, target), whole)
        found.requires_grad_()
        parts = measured(found, target)
        whole = divergence(stream.head(model, found), stream.head(model, target))
        torch.testing.assert_close(parts, whole)
        gradients = [torch.autograd.grad(x.sum(), found)[0] for x in (parts, whole)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("size", "every"), [(1, 2), (999, 1)])
def test_of_a_block_that_is_smaller_than_the_head_every_other_row_is_looked_at(llama, size, every):
    stream = BlockStream(Checkpoint(llama))
    assert looked_at(stream, nn.Linear(size, size)) == every


def test_divergence_is_that_of_the_distributions():
    torch.manual_seed(0)
    found, target = torch.randn(2, 7, 11, dtype=torch.float64)
    theirs, ours = (torch.distributions.Categorical(logits=x) for x in (target, found))
    expected = torch.distributions.kl_divergence(theirs, ours)
    torch.testing.assert_close(divergence(found, target), expected)
    assert divergence(found, found + 3).abs().max() < 1e-12
