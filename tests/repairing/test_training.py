"""What of a block is trained after the closed form, and on what."""

import pytest
import torch
from repairs import plan_of, repaired

from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.layers import SecondHalf
from compressor.repairing.block import BlockRepair
from compressor.repairing.refine import EPOCHS, FFN_EPOCHS

FFN = {"ffn": [*range(0, 40, 2), 41]}


def ffn_cut(folder):
    checkpoint = Checkpoint(folder)
    return plan_of(checkpoint, FFN | {"attention": [*range(checkpoint.units["attention"])]})


def changed(checkpoint: Checkpoint, before: dict, after: dict) -> set[str]:
    """The projections that are not the same in both."""
    names = set(checkpoint.family.projections()) & set(after)
    return {n for n in names if n not in before or not torch.equal(after[n], before[n])}


def test_where_the_attention_is_whole_the_ffn_alone_is_trained(any_family):
    checkpoint, plan = Checkpoint(any_family), ffn_cut(any_family)
    (refit, before), (trained, after) = (
        repaired(any_family, kind, plan=plan) for kind in ("ridge", "refine")
    )
    told = [block["steps"]["refine"] for block in trained.record]
    moved = changed(checkpoint, before[0], after[0])
    assert moved <= set(checkpoint.family.projections("ffn"))
    assert bool(moved) == (told[0]["after"] < told[0]["losses"][0])
    epochs = [FFN_EPOCHS] * (checkpoint.blocks - 1) + [EPOCHS]
    assert all(len(t["losses"]) in (1, 1 + n) for t, n in zip(told, epochs, strict=True))
    assert refit.about["kind"] == "ridge" and trained.about["epochs"] == FFN_EPOCHS


def test_where_the_attention_is_cut_every_projection_is_trained(llama):
    (_, before), (trained, after) = (repaired(llama, kind) for kind in ("ridge", "refine"))
    checkpoint = Checkpoint(llama)
    moved = changed(checkpoint, before[0], after[0])
    assert moved == set(checkpoint.family.projections())
    assert trained.about["epochs"] == EPOCHS


@pytest.mark.parametrize("cut", ["ffn", "both"])
def test_the_second_half_gives_what_the_block_gives(any_family, monkeypatch, cut):
    seen = []

    def compared(self, cut, cut_after, cut_read, dense_out):
        half = SecondHalf(self.narrow, self.family)
        for i, (args, keywords) in enumerate(self.calls):
            whole = states_of(self.narrow(cut.get(i, self.device), *args, **keywords))
            read = (states.get(i, self.device) for states in (cut_after, cut_read))
            torch.testing.assert_close(half(*read), whole)
            seen.append(self.index)

    monkeypatch.setattr(BlockRepair, "refine", compared)
    plan = ffn_cut(any_family) if cut == "ffn" else plan_of(Checkpoint(any_family))
    repaired(any_family, "refine", plan=plan)
    assert sorted(set(seen)) == [*range(Checkpoint(any_family).blocks)]
