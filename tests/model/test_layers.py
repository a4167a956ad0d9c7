"""A block as a module: what is given to and by its parts, and the stream after it."""

import pytest
import torch
from torch import nn

from compressor.model.activations import Activations
from compressor.model.checkpoint import Checkpoint
from compressor.model.layers import captured, passed
from compressor.model.stream import BlockStream


@pytest.fixture
def parts() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))


def test_captured_is_what_enters_and_nothing_runs_behind_it(parts):
    x = torch.randn(5, 3)
    parts[2].register_forward_pre_hook(lambda *_: pytest.fail("ran on"))
    assert torch.equal(captured(parts[1], lambda: parts(x)), parts[0](x))
    with pytest.raises(AssertionError, match="SiLU was not called"):
        captured(parts[1], lambda: parts[0](x))
    assert "forward" not in vars(parts[1])


@pytest.mark.parametrize("files", [False, True])
def test_passed_replaces_the_stream(llama, tmp_path, files):
    stream = BlockStream(Checkpoint(llama), place=tmp_path if files else None)
    states = Activations(stream.place)
    given = [torch.randn(2, 3), torch.randn(1, 3)]
    for i, hidden in enumerate(given):
        states.put(i, hidden)
    calls = [((2.0,), {"shift": 1.0}), ((3.0,), {"shift": 0.0})]
    after = passed(stream, lambda x, scale, shift: (x * scale + shift,), states, calls)
    assert torch.equal(after.get(0, stream.device), given[0] * 2 + 1)
    assert torch.equal(after.get(1, stream.device), given[1] * 3)
    with pytest.raises((KeyError, FileNotFoundError)):
        states.get(0, stream.device)
