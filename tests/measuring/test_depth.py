"""Blocks chosen by the loss without them."""

from types import SimpleNamespace

import pytest
import torch

from compressor.measuring import depth
from compressor.measuring.depth import judged_drops, loss_without
from compressor.model.checkpoint import Checkpoint
from compressor.model.modules import replaced_forward
from compressor.model.stream import BlockStream
from compressor.scoring.probing import head_nll
from compressor.text.tokens import TokenSet

INFLUENCE = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
ALIKE = [4] * 7


def of(groups):
    """A stream, as far as it is looked at: the KV groups of every block."""
    units = [{"attention": n, "ffn": 8} for n in groups]
    return SimpleNamespace(checkpoint=SimpleNamespace(block_units=units))


@pytest.fixture
def measured(monkeypatch):
    """The sets that were measured; 2 alone is best, and with it 5, which is no candidate at first."""
    sets = []

    def loss(stream, dropped, judged) -> float:
        sets.append(list(dropped))
        return {(2,): 1.0, (2, 5): 2.0}.get(tuple(dropped), 3.0 + sum(dropped) / 100)

    monkeypatch.setattr(depth, "loss_without", loss)
    return sets


def test_one_after_the_other(measured):
    seen = {}
    found = judged_drops(of(ALIKE), INFLUENCE, (2, range(1, 7)), None, {"1": 3.01}, seen.update)
    assert found == [2, 5]
    assert measured == [[2], [3], [4], [1, 2], [2, 3], [2, 4], [2, 5]]
    assert seen["2,5"] == 2.0 and seen["1"] == 3.01
    measured.clear()
    assert (
        judged_drops(of(ALIKE), INFLUENCE, (2, range(1, 7)), None, seen) == [2, 5]
        and measured == []
    )


def test_the_others_stay(measured):
    assert judged_drops(of(ALIKE), INFLUENCE, (2, [1, 3]), None) == [1, 3]


def test_the_last_block_with_softmax_attention_stays(measured):
    """2 and 5 are the only ones: without 2, which alone is best, 5 is no candidate."""
    stream = of([0, 0, 4, 0, 0, 4, 0])
    assert judged_drops(stream, INFLUENCE, (2, range(1, 7)), None) == [1, 2]
    assert [2, 5] not in measured


def test_the_loss_is_that_of_the_model_without(llama):
    torch.manual_seed(0)
    tokens = TokenSet([torch.randint(3, 90, (12,)) for _ in range(3)])
    stream = BlockStream(Checkpoint(llama))
    found = loss_without(stream, [1], tokens)
    batches = tokens.batches()
    with replaced_forward([stream.layers[1]], lambda _, hidden, *args, **more: hidden):
        states = stream.run([batch.ids for batch in batches])
    with stream.outer(head=True) as model, torch.no_grad():
        nll = sum(head_nll(stream, model, states.get(i, "cpu"), b) for i, b in enumerate(batches))
    assert found == pytest.approx(nll.item() / 33, rel=1e-6)
