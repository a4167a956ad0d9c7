"""Hidden states between two blocks, in memory and in files."""

import pytest
import torch

from compressor.model.activations import Activations

CPU = torch.device("cpu")


@pytest.fixture(params=["memory", "files"])
def states(request, tmp_path) -> Activations:
    states = Activations(tmp_path if request.param == "files" else None)
    for batch in range(2):
        states.put(batch, torch.full((1, 3, 4), float(batch)))
    return states


def test_what_was_put_is_there_until_it_is_dropped(states):
    states.drop(0)
    assert torch.equal(states.get(1, CPU), torch.ones(1, 3, 4))
    with pytest.raises((KeyError, FileNotFoundError)):
        states.get(0, CPU)
    assert not states.empty
    for _ in range(2):  # what is gone may be dropped again
        states.drop(1)
    assert states.empty
    states.put(0, torch.zeros(2))
    assert not states.empty
    states.discard()


def test_discarded_at_once(states, tmp_path):
    states.discard()
    assert not [*tmp_path.iterdir()]
    assert not states.states
