"""What of a block is trained after the closed form, and on what."""

import pytest
import torch
from repairs import plan_of, repaired

from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
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


def test_the_path_after_a_block_is_what_its_repaired_tensors_give(any_family, monkeypatch):
    run, seen = BlockRepair.run, []

    def compared(self, dense, cut):
        before = [cut.get(i, self.device).clone() for i in range(len(self.calls))]
        paths = run(self, dense, cut)
        for i, (args, keywords) in enumerate(self.calls):
            whole = states_of(self.narrow(before[i], *args, **keywords))
            torch.testing.assert_close(paths[1].get(i, self.device), whole)
        seen.append(self.index)
        return paths

    monkeypatch.setattr(BlockRepair, "run", compared)
    repaired(any_family, "refine", plan=ffn_cut(any_family))
    assert sorted(set(seen)) == [*range(Checkpoint(any_family).blocks)]
