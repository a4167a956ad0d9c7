"""How a text is split into batches moves scores by rounding, and the plan not at all."""

import pytest
import torch

from compressor.config.target import Target
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet

ROUNDING = (
    1e-5  # of the largest score; float32 has 1e-7, and sums of 32 products lose a digit or two
)


@pytest.mark.parametrize("method", ["llm-bip", "wanda-sp", "kfac", "hywia"])
def test_two_splits_and_two_runs(llama, method):
    checkpoint = Checkpoint(llama)
    drawn = torch.Generator().manual_seed(0)
    texts = TokenSet([torch.randint(3, 90, (24,), generator=drawn) for _ in range(8)])

    def scored(at_once: int) -> Scores:
        stream = BlockStream(checkpoint)
        stream.batch_tokens = at_once
        return score(checkpoint, method, tokens=texts, stream=stream)

    one, again, other = scored(24), scored(24), scored(96)
    for first, second, third in zip(one.blocks, again.blocks, other.blocks, strict=True):
        for group, values in first.items():
            assert torch.equal(values, second[group])
            assert (values - third[group]).abs().max() <= ROUNDING * values.abs().max()
    for keep in (0.9, 0.7):
        plans = [allocate(s, checkpoint, Target("keep", keep)).blocks for s in (one, other)]
        assert plans[0] == plans[1]
