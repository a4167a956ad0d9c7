"""Influence of blocks against transformers' own hidden states."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.scoring.influence import influences, least
from compressor.text.tokens import TokenSet


def test_it_is_the_angle_between_what_enters_and_leaves(any_family):
    torch.manual_seed(0)
    rows = [torch.randint(3, 90, (length,)) for length in (9, 14, 14, 20)]
    found = influences(BlockStream(Checkpoint(any_family)), TokenSet(rows))
    model = AutoModelForCausalLM.from_pretrained(any_family).eval()
    layers = model.get_submodule(Checkpoint(any_family).family.layers)
    sums = [0.0] * len(layers)

    def add(place: int):
        def hook(_, args, out) -> None:
            out = out[0] if isinstance(out, tuple) else out
            sums[place] += (1 - cosine_similarity(args[0], out, dim=-1)).sum().item()

        return hook

    for place, layer in enumerate(layers):
        layer.register_forward_hook(add(place))
    with torch.no_grad():
        for row in rows:
            model(row[None], use_cache=False)
    tokens = sum(map(len, rows))
    assert found == pytest.approx([s / tokens for s in sums], rel=1e-4)


def test_the_least_of_those_that_may_go():
    assert least([0.1, 0.5, 0.2, 0.3, 0.2], 2, range(1, 5)) == [2, 4]
    assert least([0.1, 0.5, 0.2, 0.3, 0.2], 3, [1, 3, 4]) == [1, 3, 4]
    assert least([0.1, 0.5], 0, [1]) == []
