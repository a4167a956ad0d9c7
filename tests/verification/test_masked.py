"""The source as a repaired cut has it, one block at a time."""

import pytest
import torch

from compressor.config.target import Target
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import load
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.repairing.streaming import Repair
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.verification.masked import masked_plan
from compressor.writing.cuts import write


@pytest.mark.parametrize("layout", ["uniform", "padded"])
def test_repaired_tensors_are_in_memory_while_their_block_runs(llama, text_file, tmp_path, layout):
    checkpoint = Checkpoint(llama)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 32)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7))
    repair = Repair(BlockStream(checkpoint), plan, tokens, "ridge")
    chosen = write(checkpoint, plan, tmp_path / "out", layout, changes=repair.blocks())
    record = make_record(checkpoint, plan, layout, chosen, repair)
    model, _ = load(llama)
    layers = model.model.layers
    own = [layer.mlp.down_proj.weight for layer in layers]
    seen = []

    def look(*_):
        now = [layer.mlp.down_proj.weight for layer in layers]
        seen.append([not torch.equal(a, b) for a, b in zip(own, now, strict=True)])

    for layer in layers:
        layer.self_attn.register_forward_hook(look)
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        before = model(ids).logits
        seen.clear()
        with masked_plan(model, checkpoint, Checkpoint(tmp_path / "out"), record):
            after = model(ids).logits
            look()
            during = list(seen)
        cut, _ = load(tmp_path / "out")
        torch.testing.assert_close(after, cut(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.equal(after, before) and torch.equal(model(ids).logits, before)
    assert during == [*torch.eye(len(own), dtype=torch.bool).tolist(), [False] * len(own)]
