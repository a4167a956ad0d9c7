"""What an observer is told of a block's modules."""

import pytest
import torch
from torch import nn

from compressor.model.observing import observed


@pytest.fixture
def parts() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))


def test_given_and_passed_are_those_of_the_modules(parts):
    x, given, passed = torch.randn(5, 3), {}, {}
    with observed(
        parts,
        {"1": lambda x: given.update(silu=x)},
        {
            "0": lambda x, out: passed.update(first=(x, out)),
            "": lambda *both: passed.update(all=both),
        },
    ):
        result = parts(x)
    assert torch.equal(given["silu"], parts[0](x))
    assert torch.equal(passed["first"][0], x) and torch.equal(passed["first"][1], given["silu"])
    assert torch.equal(passed["all"][0], x) and passed["all"][1] is result
    assert torch.equal(result, parts(x))  # nothing is changed


def test_no_hook_is_left_behind(parts):
    with pytest.raises(ZeroDivisionError), observed(parts, {"0": print}, {"1": print}):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in parts.modules())


def test_a_module_that_is_not_there_leaves_none_either(parts):
    with pytest.raises(AttributeError), observed(parts, {"0": print, "seven": print}):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in parts.modules())
