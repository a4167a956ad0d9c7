"""Models that are mostly embedding: what a share is in the other unit, and what can be reached."""

import json
import time

import pytest
from headers import write_headers
from jobs import compress, said, stage

from compressor.config.target import Target
from compressor.model.checkpoint import Checkpoint
from compressor.planning.costs import Costs
from compressor.planning.lattice import lattice
from compressor.planning.reach import MUCH, outside_note, reach_of

WIDE = {"vocab_size": 1000, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def wide(make_checkpoint, tmp_path_factory):
    """A llama of which more than half is its embedding."""
    return make_checkpoint(tmp_path_factory.mktemp("wide") / "model", **WIDE)


def reach(folder):
    checkpoint = Checkpoint(folder)
    return checkpoint, reach_of(checkpoint, lattice(checkpoint, align=1))


def test_counts_and_shares(wide):
    checkpoint, found = reach(wide)
    embedding, norms = 1000 * 32, 32
    assert found.outside == embedding + norms and found.tied
    assert found.outside > MUCH * found.parameters
    least = 32 * 4 * 2 * (2 + 1) + 32 * 3  # one KV group of two heads, one channel
    kept = checkpoint.blocks * (least + 2 * 32) + found.outside
    assert found.keep == pytest.approx(kept / checkpoint.parameters)
    blocks = checkpoint.blocks * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    assert found.keep_blocks == pytest.approx(checkpoint.blocks * least / blocks)


def test_a_share_is_said_in_the_other_unit(wide):
    checkpoint, found = reach(wide)
    costs = Costs.of(checkpoint)
    given = [Target("keep", 0.9), Target("keep-blocks", 0.5), Target("params", 40_000)]
    (note,) = outside_note(found, costs, given)
    total, outside = checkpoint.parameters, checkpoint.parameters - costs.prunable
    for words in (
        f"The embedding is 32,032 of {total:,} parameters ({32032 / total:.0%}) and is never cut: ",
        f"--keep 0.9 is {(0.9 * total - outside) / costs.prunable:.2f} of the blocks' weights, ",
        f"--keep-blocks 0.5 is {(outside + 0.5 * costs.prunable) / total:.2f} of all parameters, ",
        f"--target 40,000 parameters is {(40000 - outside) / costs.prunable:.2f} of the blocks' "
        "weights; ",
        f"reachable are {found.keep:.2g} to 1 of all parameters ({found.keep_blocks:.2g} to 1 of ",
    ):
        assert words in note
    (below,) = outside_note(found, costs, [Target("keep", 0.3)])
    assert "--keep 0.3 is less than what is outside the blocks" in below


def test_a_head_of_its_own_is_named(make_checkpoint, tmp_path):
    sizes = WIDE | {"tie_word_embeddings": False}
    checkpoint, found = reach(make_checkpoint(tmp_path / "m", **sizes))
    assert found.outside == 2 * 1000 * 32 + 32
    (note,) = outside_note(found, Costs.of(checkpoint))
    assert note.startswith("Embedding and head are 64,032 of ")


def test_little_outside_is_not_said(make_checkpoint, tmp_path):
    checkpoint, found = reach(
        make_checkpoint(tmp_path / "m", hidden_size=64, **{"vocab_size": 100})
    )
    assert found.outside < MUCH * found.parameters
    assert outside_note(found, Costs.of(checkpoint), [Target("keep", 0.9)]) == []


def test_gemma_of_270_millions(tmp_path, capsys):
    """168 of them are the embedding; refused from headers alone, without a text or a tokenizer."""
    folder = write_headers("Gemma 3 270M", tmp_path / "gemma")
    begun = time.monotonic()
    assert compress(folder, tmp_path / "out", "--keep", 0.7) == 2
    assert time.monotonic() - begun < 5
    message = said(capsys)
    for words in (
        "The target keep 0.7 cannot be reached: the smallest possible is 0.736",
        "The embedding is 168 of 268 million parameters (63%) and is never cut",
        "--keep 0.7 is 0.20 of the blocks' weights",
        "reachable are 0.74 to 1 of all parameters (0.29 to 1 of the blocks').",
        "A block has one KV group, which stays, so FFN channels alone go",
    ):
        assert words in message
    assert compress(folder, tmp_path / "out", "--keep-blocks", 0.2) == 2
    assert "--keep-blocks 0.2 is 0.70 of all parameters; reachable are 0.74 to 1" in said(capsys)
    assert stage("estimate", folder, "--device", "h200", "--json") == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["outside_blocks"]["least_keep"] == pytest.approx(0.736, abs=1e-3)
    assert model["outside_blocks"]["least_keep_blocks"] == pytest.approx(0.294, abs=1e-3)
    assert "--keep 0.9 is 0.73 of the blocks' weights, --keep 0.8 is 0.47" in model["notes"][0]


def test_the_job_says_it_before_and_after(wide, text_file, tmp_path, capsys):
    options = ["--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify"]
    options += ["--method", "random", "--repair", "none"]
    dest = tmp_path / "out"
    assert compress(wide, dest, "--keep", 0.9, *options) == 0
    found = capsys.readouterr()
    for shown in (found.err, found.out):
        assert "The embedding is 32,032 of " in " ".join(shown.split())
    record = json.loads((dest / "compression.json").read_text())
    _, known = reach(wide)
    assert record["outside_blocks"] == known.described()
    assert stage("estimate", wide, "--device", "h200") == 0
    assert "The embedding is 32,032 of " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "given", [["--keep", 0.5], ["--keep-blocks", 0.05], ["--target-params", 32_000]]
)
def test_out_of_reach_is_refused_before_a_text_is_read(wide, tmp_path, capsys, given):
    (tmp_path / "empty.txt").touch()
    options = ["--calibration", tmp_path / "empty.txt"]
    assert compress(wide, tmp_path / "out", *given, *options) == 2
    message = said(capsys)
    _, known = reach(wide)
    assert "cannot be reached: the smallest possible is" in message
    assert f"reachable are {known.keep:.2g} to 1 of all parameters" in message
