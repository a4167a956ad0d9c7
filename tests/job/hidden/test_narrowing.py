"""Jobs that cut the hidden size: what they write, say and record, and what they refuse."""

import json

import pytest
import torch
from jobs import compress, said, same_bytes, same_files, stage
from safetensors.torch import load_file, save_file

import compressor
from compressor.errors import InputError, VerificationError
from compressor.job.hidden import narrowing
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.repairing.block import BlockRepair
from compressor.verification.child import verify_here
from compressor.writing.record import read_record, write_record

ASKED = ["--keep-hidden", 0.75]


@pytest.fixture(scope="module")
def narrow(llama, text_file, tmp_path_factory):
    """A folder of a repaired job, which tests do not change."""
    dest = tmp_path_factory.mktemp("narrow") / "out"
    quick = ["--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify"]
    assert compress(llama, dest, *ASKED, "--repair", "ridge", *quick) == 0
    return dest


def test_from_the_command_to_the_record(llama, quick, narrow, tmp_path, capsys):
    dest = tmp_path / "out"
    assert compress(llama, dest, *ASKED, "--repair", "ridge", *quick, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"] == {"kind": "keep-hidden", "value": 0.75, "budget": "params"}
    assert found["hidden_size"] == 24 and found["keep_blocks_reached"] == 0.75
    assert found["parameters_before"] == Checkpoint(llama).parameters
    assert found["parameters_after"] == Checkpoint(dest).parameters
    record, card = read_record(dest), (dest / "README.md").read_text()
    hidden = record["plan"]["about"]["hidden"]
    assert record["hidden_size"] == len(hidden["channels"]) == 24 and hidden["of"] == 32
    assert 0.5 < hidden["energy"] < 1
    assert "24 of 32 channels of the residual stream stay" in card
    assert same_bytes(narrow / SINGLE, dest / SINGLE)
    config = json.loads((dest / "config.json").read_text())
    assert (config["hidden_size"], config["head_dim"], config["num_attention_heads"]) == (24, 4, 8)
    again = [llama, tmp_path / "again", "--plan", dest / "compression.json", *quick]
    assert stage("cut", *again, "--repair", "ridge") == 0
    assert same_bytes(tmp_path / "again" / SINGLE, dest / SINGLE)


@pytest.mark.parametrize("repair", ["none", "ridge"])
def test_every_family_loads_and_computes_what_it_should(any_family, quick, tmp_path, repair):
    family = Checkpoint(any_family).family
    asked = [any_family, tmp_path / "out", *ASKED, "--repair", repair, *quick]
    if family.heads_fixed:
        assert compress(*asked) == 2
        return
    assert compress(*asked) == 0
    assert verify_here(tmp_path / "out", any_family, generates=True)["logits_difference"] < 1e-4


def test_experts_are_cut_along_the_stream(mixture, quick, tmp_path):
    assert compress(mixture, tmp_path / "out", *ASKED, "--repair", "ridge", *quick) == 0
    assert verify_here(tmp_path / "out", mixture)["logits_difference"] < 1e-4


def test_half_precision_and_an_embedding_that_is_multiplied(make_checkpoint, quick, tmp_path):
    """Gemma's, by the root of the hidden size, which is less in the result."""
    folder = make_checkpoint(tmp_path / "gemma", "gemma", torch.bfloat16, tie_word_embeddings=True)
    assert compress(folder, tmp_path / "out", *ASKED, "--repair", "none", *quick) == 0
    assert verify_here(tmp_path / "out", folder)["logits_difference"] < 1e-3
    assert read_record(tmp_path / "out")["hidden"]["tensors"] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]


def test_training_and_recovery_and_4_bits_follow(make_checkpoint, quick, tmp_path):
    folder = make_checkpoint(tmp_path / "wide", hidden_size=160, intermediate_size=128, head_dim=16)
    asked = ["--keep-hidden", 128, "--repair", "refine", "--recover", "lora:2", *quick]
    assert compress(folder, tmp_path / "out", *asked, "--quantize", "fp8") == 0
    result = compressor.inspect(tmp_path / "out")
    assert result["hidden_size"] == 128 and result["scheme"] == "fp8"


@pytest.mark.parametrize("what", ["channels", "block", "head"])
def test_a_result_of_other_channels_or_tensors_does_not_pass(llama, narrow, tmp_path, what):
    """The proof sees a channel that is not the one that was kept, and any tensor that is changed."""
    dest = tmp_path / "spoiled"
    dest.mkdir()
    for file in narrow.iterdir():
        (dest / file.name).write_bytes(file.read_bytes())
    record, tensors = read_record(dest), load_file(dest / SINGLE)
    names = {"block": "model.layers.1.mlp.down_proj.weight", "head": "lm_head.weight"}
    if what == "channels":
        hidden = record["plan"]["about"]["hidden"]
        gone = min({*range(32)} - {*hidden["channels"]})
        hidden["channels"] = sorted({*hidden["channels"][1:], gone})
        write_record(dest, record)
        message = "differ from the masked source's"
    else:
        tensors[names[what]] = tensors[names[what]] * 1.5
        save_file(tensors, dest / SINGLE, {"format": "pt"})
        message = "are not those that were made"
    with pytest.raises(VerificationError, match=message):
        verify_here(dest, llama)


@pytest.mark.parametrize("repair", ["ridge", "refine"])
def test_an_interrupted_job_goes_on(llama, quick, tmp_path, monkeypatch, repair):
    asked = [*ASKED, "--repair", repair, *quick]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    run_block = BlockRepair.run

    def stopping(block, *streams):
        if block.index == 2:
            raise KeyboardInterrupt
        return run_block(block, *streams)

    monkeypatch.setattr(BlockRepair, "run", stopping)
    assert compress(llama, tmp_path / "part", *asked) == 130
    monkeypatch.undo()
    monkeypatch.setattr(narrowing, "energies", None)  # known by now
    assert compress(llama, tmp_path / "part", *asked, "--resume") == 0
    assert same_files(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([1], "must be a share between 0 and 1, or a number of channels above 1, not 1"),
        ([-0.5], "must be a share between 0 and 1"),
        ([20.5], "must be a share between 0 and 1, or a number of channels above 1, not 20.5"),
        ([0.99], "comes to 32 of the 32 channels"),
        ([64], "comes to 64 of the 32 channels"),
        ([0.05], "comes to 0 of the 32 channels"),
        ([0.5, "--align", 64], "in multiples of 64; give another share, or a finer --align"),
        ([0.5, "--keep", 0.8], "give it alone, and compress the result again"),
        ([0.5, "--drop-blocks", 1], "give it alone, and compress the result again"),
        ([0.5, "--method", "hywia"], "--method is for units of blocks"),
        ([0.5, "--allocate", "exact"], "--allocate is for units of blocks"),
        ([0.5, "--layout", "nas"], "--layout nas is for blocks that differ"),
        (
            [0.5, "--repair", "bias"],
            "--repair bias is for units; where the hidden size is cut, use",
        ),
    ],
)
def test_what_is_refused(llama, quick, tmp_path, capsys, asked, message):
    assert compress(llama, tmp_path / "out", "--keep-hidden", *asked, *quick) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_stages_say_who_takes_such_a_plan(llama, narrow):
    plan = compressor.Plan.load(narrow / "compression.json")
    with pytest.raises(InputError, match="`compressor cut` takes such a plan"):
        compressor.cut(llama, plan)
    with pytest.raises(InputError, match="The hidden size is cut by compress"):
        compressor.plan(compressor.score(llama, method="magnitude"), keep=0.8, keep_hidden=0.5)
