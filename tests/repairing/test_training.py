"""What of a block is trained after the closed form, and on what."""

import pytest
import torch
from repairs import plan_of, repaired

from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.layers import second_half
from compressor.repairing.block import BlockRepair
from compressor.repairing.refine import EPOCHS, FFN_EPOCHS

FFN = {"ffn": [*range(0, 40, 2), 41]}


def ffn_cut(folder):
    checkpoint = Checkpoint(folder)
    return plan_of(checkpoint, FFN | {"attention": [*range(checkpoint.units["attention"])]})


@pytest.fixture
def trained(monkeypatch) -> dict[int, set[str]]:
    """Of every block whose training is taken, the tensors that it replaces."""
    seen, replace = {}, BlockRepair.replace

    def watched(self, step, tensors):
        if step == "refine":
            seen[self.index] = set(tensors)
        replace(self, step, tensors)

    monkeypatch.setattr(BlockRepair, "replace", watched)
    return seen


def told_of(repair) -> list[dict]:
    return [block["steps"]["refine"] for block in repair.record]


def test_where_the_attention_is_whole_the_ffn_alone_is_trained(any_family, trained):
    checkpoint = Checkpoint(any_family)
    repair, _ = repaired(any_family, "refine", plan=ffn_cut(any_family))
    told = told_of(repair)
    assert [*trained] == [b for b, t in enumerate(told) if t["after"] < t["losses"][0]]
    ffn = set(checkpoint.family.projections("ffn"))
    assert all(names == ffn for names in trained.values())
    epochs = [FFN_EPOCHS] * (checkpoint.blocks - 1)
    assert [len(t["losses"]) - 1 for t in told[:-1]] == epochs
    assert len(told[-1]["losses"]) in (1, 1 + EPOCHS)
    assert repair.about["epochs"] == FFN_EPOCHS


def test_where_the_attention_is_cut_every_projection_is_trained(llama, trained):
    repair, _ = repaired(llama, "refine")
    told, names = told_of(repair), set(Checkpoint(llama).family.projections())
    assert trained and all(some == names for some in trained.values())
    assert {len(t["losses"]) for t in told} <= {1, 1 + EPOCHS}
    assert repair.about["epochs"] == EPOCHS


@pytest.mark.parametrize("cut", ["ffn", "both"])
def test_the_second_half_gives_what_the_block_gives(any_family, monkeypatch, cut):
    seen = []

    def compared(self, cut, cut_after, cut_read, dense_out):
        for i, (args, keywords) in enumerate(self.calls):
            whole = states_of(self.narrow(cut.get(i, self.device), *args, **keywords))
            read = (states.get(i, self.device) for states in (cut_after, cut_read))
            with second_half(self.narrow, self.family):
                torch.testing.assert_close(self.narrow(*read), whole)
            seen.append(self.index)

    monkeypatch.setattr(BlockRepair, "refine", compared)
    plan = ffn_cut(any_family) if cut == "ffn" else plan_of(Checkpoint(any_family))
    repaired(any_family, "refine", plan=plan)
    assert sorted(set(seen)) == [*range(Checkpoint(any_family).blocks)]
