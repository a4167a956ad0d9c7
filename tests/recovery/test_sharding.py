"""A sharded model: two ranks hold half each, and train what one process does."""

import json
from pathlib import Path

import pytest
import torch
from jobs import detailed, left_over, stage
from safetensors.torch import load_file
from sharded import EXPECTED, recovered

from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.recovery.precision import check_memory
from compressor.recovery.sharding import Sharding, asked_for
from compressor.verification.child import verify_here
from compressor.writing.record import RECORD

SHARDED = Path(__file__).parents[1] / "sharded.py"
ASKED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# Largest distance of two trained weights, which are up to 1.5: the order of float32 sums is another.
FAR = 2e-5


# A bias of keys has no gradient but rounding, which Adam makes steps of: there adapters are trained.
BREADTH = [("llama", "distill"), ("bloom", "lora"), ("gpt2", "lora")]
BREADTH += [(family, "full") for family in ("gemma2", "qwen3_5_text", "qwen3_moe")]


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "full-distill"), ("qwen2", "lora")]
    + [pytest.param(*each, marks=pytest.mark.breadth) for each in BREADTH],
)
def test_two_ranks_train_what_one_process_does(
    random_family,
    started,
    tmp_path,
    family,
    method,
):
    """Also where gradients are clipped; and what is in memory is what is written."""
    model, one, two = random_family(family), tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    recovered(model, one, method, None)
    ended = started(2, SHARDED, model, two, method)
    assert ended.codes == [0, 0], ended.errors
    opened = (Checkpoint(folder) for folder in (one / "result", two / "result", model))
    expected, found, before = (c.read(c.tensors) for c in opened)
    assert expected.keys() == found.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=FAR)
    assert max((found[n] - before[n]).abs().max() for n in found) > 100 * FAR
    assert verify_here(two / "result", expected=two / EXPECTED)["logits_difference"] < 1e-5

    held = [json.loads((two / f"held{rank}.json").read_text()) for rank in range(2)]
    for kind in ("weights", "moments"):
        (mine, total), (theirs, _) = (rank[kind] for rank in held)
        assert mine + theirs == total
    for kind in ("weights", "moments", "gradients"):
        (mine, _), (theirs, _) = (rank[kind] for rank in held)
        assert 0.45 < mine / (mine + theirs) < 0.7, kind  # of three rows the first rank has two


def test_half_weights_are_rounded_as_stored(make_checkpoint, started, tmp_path):
    model = make_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    ended = started(2, SHARDED, model, tmp_path, "lora")
    assert ended.codes == [0, 0], ended.errors
    assert Checkpoint(tmp_path / "result").dtype == torch.bfloat16
    report = verify_here(tmp_path / "result", expected=tmp_path / EXPECTED)
    assert report["logits_difference"] < 1e-5


def test_the_stage_shards_what_does_not_fit_and_goes_on_where_one_process_was(
    llama,
    alone,
    tmp_path,
    dies_after_a_save,
    started,
):
    """Begun alone, ended by two ranks; the record is that of one process."""
    options = [*alone, "--lora-dropout", 0]
    dest, whole = tmp_path / "dest", tmp_path / "whole"
    assert stage("recover", llama, dest, *options) == 130
    assert stage("recover", llama, whole, *options) == 0
    given = detailed([str(o) for o in (llama, dest, *options)], tmp_path)
    # Half of its 42,944 numbers in float32 are 86 KB.
    ended = started(2, "recover", *given, "--resume", "--max-memory", "120KB")
    assert ended.codes == [0, 0], ended.errors
    assert "sharded over 2 processes (FSDP2); this one holds" in ended.errors[0]
    one, two = (load_file(folder / SINGLE) for folder in (whole, dest))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=FAR)
    one, two = (json.loads((folder / RECORD).read_text())["recovery"] for folder in (whole, dest))
    assert two.pop("losses") == pytest.approx(one.pop("losses"), rel=1e-5)
    assert [loss for _, loss in two.pop("held_back")] == pytest.approx(
        [loss for _, loss in one.pop("held_back")], rel=1e-5
    )
    assert two == one  # settings, data, and that it was kept
    assert left_over(dest) == ["dest"]


def test_sharding_is_what_the_launcher_asks_for(monkeypatch):
    assert asked_for() is None
    for name, value in ASKED.items():
        monkeypatch.setenv(name, value)
    assert asked_for() == Sharding(reshard=True)
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert asked_for() == Sharding(reshard=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert asked_for() is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP_VERSION is 1; give accelerate launch --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "no --fsdp_offload_params, which is true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "no --fsdp_activation_checkpointing"),
        ({"FSDP_AUTO_WRAP_POLICY": "BY_LUCK"}, "accelerate refuses .* BY_LUCK"),
    ],
)
def test_what_is_not_done_is_said(monkeypatch, changed, message):
    for name, value in (ASKED | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        asked_for()


def test_a_share_that_does_not_fit_is_refused():
    given = (1000, torch.float32, "cpu", "auto")
    check_memory(*given, 2000, processes=2)
    with pytest.raises(MachineError, match="4e-06 GB in float32, which 2 processes share"):
        check_memory(*given, 1999, processes=2)
