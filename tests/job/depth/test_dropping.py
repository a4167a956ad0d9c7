"""Jobs that drop whole blocks: what they write, say and record, and what they refuse."""

import json

import pytest
from jobs import compress, said, same_bytes, same_files, stage
from transformers import AutoModelForCausalLM

import compressor
from compressor.job.depth import dropping
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.verification.child import verify_here
from compressor.writing.record import read_record


@pytest.fixture(scope="module")
def deep(tmp_path_factory, make_checkpoint):
    return make_checkpoint(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=5)


def test_a_cut_by_depth_alone(deep, quick, tmp_path, capsys):
    """From the command to the record, and from the record's plan to the same bytes."""
    dest = tmp_path / "out"
    assert compress(deep, dest, "--drop-blocks", 2, *quick, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    dropped = found["dropped_blocks"]
    assert len(dropped) == 2 and 0 not in dropped
    assert found["asked"]["kind"] == "drop-blocks" and found["layout"] == "uniform"
    assert found["keep_blocks_reached"] == pytest.approx(0.6, abs=0.005)
    assert found["parameters_before"] == Checkpoint(deep).parameters
    assert found["parameters_after"] == Checkpoint(dest).parameters
    assert verify_here(dest, deep)["logits_difference"] < 1e-3
    record, card = read_record(dest), (dest / "README.md").read_text()
    about = record["plan"]["about"]
    assert about["dropped"] == record["dropped_blocks"] == dropped
    assert len(about["depth"]["influence"]) == 5
    assert "2 of 5 blocks were dropped" in card and "is folded into" in card
    assert compressor.inspect(dest)["dropped_blocks"] == dropped
    assert stage("inspect", dest) == 0
    assert "3 blocks (without " in capsys.readouterr().out
    again = [deep, tmp_path / "again", "--plan", dest / "compression.json", *quick]
    assert stage("cut", *again) == 0
    assert same_bytes(tmp_path / "again" / SINGLE, dest / SINGLE)
    assert same_bytes(tmp_path / "again/config.json", dest / "config.json")


def test_depth_and_several_widths_of_one_scoring(deep, quick, tmp_path, capsys, monkeypatch):
    """An interrupted job goes on with the same blocks, folded as before."""
    asked = ["--drop-blocks", 1, "--keep-blocks", 0.6, 0.5, "--repair", "ridge", *quick]
    assert compress(deep, tmp_path / "whole", *asked) == 0
    assert "dropped blocks" in capsys.readouterr().out

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.job.result.write_folder", killed)
    assert compress(deep, tmp_path / "again", *asked) == 130
    assert "influence" in said(capsys)
    monkeypatch.undo()
    monkeypatch.setattr(dropping, "fold", killed)
    monkeypatch.setattr(dropping, "influences", killed)
    assert compress(deep, tmp_path / "again", *asked, "--resume") == 0
    for share in ("0.6", "0.5"):
        folders = [tmp_path / name / f"keep-blocks-{share}" for name in ("whole", "again")]
        assert same_files(*folders)
        about = read_record(folders[0])["plan"]["about"]
        assert about["keep_blocks_reached"] == pytest.approx(float(share), abs=0.01)
        assert verify_here(folders[0], deep)["logits_difference"] < 1e-3


def test_blocks_are_chosen_by_loss_where_allocations_are_measured(deep, quick, tmp_path):
    asked = ["--drop-blocks", 1, "--allocate", "measured", "--repair", "none", *quick]
    assert compress(deep, tmp_path / "out", *asked) == 0
    about = read_record(tmp_path / "out")["plan"]["about"]
    losses = about["depth"]["tried"]
    assert about["dropped"] == [int(min(losses, key=losses.get))] and len(losses) == 4


def test_how_many_go_is_decided_by_loss(deep, quick, tmp_path, capsys):
    asked = ["--drop-blocks", "auto", "--keep-blocks", 0.6, "--repair", "ridge", *quick, "--json"]
    assert compress(deep, tmp_path / "out", *asked) == 0
    found = json.loads(capsys.readouterr().out)
    about = read_record(tmp_path / "out")["plan"]["about"]
    losses = about["depth"]["losses"]
    assert [*losses] == ["0", "1", "2"]
    assert len(found["dropped_blocks"] or []) == int(min(losses, key=losses.get))
    assert found["keep_blocks_reached"] == pytest.approx(0.6, abs=0.01)
    assert any("was decided by the held-back loss" in w for w in found["warnings"])


def test_blocks_that_differ_are_refused_at_once(unequal, quick, tmp_path, capsys):
    asked = ["--drop-blocks", 1, *quick]
    assert compress(unequal, tmp_path / "out", *asked) == 2
    told = said(capsys)
    assert "blocks of different widths" in told and "influence" not in told
    assert compress(unequal, tmp_path / "out", *asked, "--layout", "per-layer") == 0
    assert Checkpoint(tmp_path / "out").blocks == 2


@pytest.mark.parametrize("layout", ["nas", "per-layer", "padded"])
def test_every_layout_holds_fewer_blocks(deep, quick, tmp_path, layout):
    asked = ["--drop-blocks", 1, "--keep-blocks", 0.6, "--layout", layout, "--allocate", "exact"]
    assert compress(deep, tmp_path / "out", *asked, "--repair", "none", *quick) == 0
    assert verify_here(tmp_path / "out", deep)["logits_difference"] < 1e-3
    assert Checkpoint(tmp_path / "out").blocks == 4


def test_models_whose_widths_are_their_classs_lose_blocks(random_family, quick, tmp_path):
    """Bloom's in transformers' class; Baichuan's under the name that vLLM's has."""
    assert compress(random_family("bloom"), tmp_path / "bloom", "--drop-blocks", 1, *quick) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bloom")
    assert type(model).__name__ == "BloomForCausalLM" and len(model.transformer.h) == 2
    baichuan = random_family("baichuan")
    assert compress(baichuan, tmp_path / "baichuan", "--drop-blocks", 1, *quick) == 0
    told = json.loads((tmp_path / "baichuan/config.json").read_text())
    assert told["architectures"] == ["BaichuanForCausalLM"] and "per_layer_config" not in told
    assert verify_here(tmp_path / "baichuan", baichuan)["logits_difference"] < 1e-3


def test_stages_in_python_follow_the_plan(deep, quick, tmp_path):
    """`cut` takes the source's own weights, `repair` folds as the job did."""
    dest = tmp_path / "out"
    assert compress(deep, dest, "--drop-blocks", 2, "--repair", "none", *quick) == 0
    plan = compressor.Plan.load(dest / "compression.json")
    small = compressor.cut(deep, plan)
    assert len(small.model.layers) == 3
    kept = [b for b in range(5) if b not in plan.dropped]
    source = AutoModelForCausalLM.from_pretrained(deep)
    for ours, block in zip(small.model.layers, kept, strict=True):
        theirs = source.model.layers[block].mlp.down_proj.weight
        assert (ours.mlp.down_proj.weight == theirs).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([0], "must be a number from 1 up, or auto, not 0"),
        ([-2], "must be a number from 1 up, or auto, not -2"),
        (["half"], "takes a number of blocks, or auto, not 'half'"),
        ([5], "has 5 blocks, of which 4 can go (not 0); drop fewer"),
        ([3, "--protect", "1,-1"], "of which 2 can go (not 0, 1, 4); drop fewer"),
        (["auto"], "auto decides for one target"),
        (["auto", "--keep", 0.8, 0.7], "auto decides for one target"),
        ([3, "--keep-blocks", 0.8], "are left, less than --keep-blocks 0.8; drop fewer"),
        ([1, "--align", 8], "--align is for widths"),
        ([1, "--method", "hywia"], "--method is for widths"),
        ([1, "--allocate", "exact"], "--allocate is for widths"),
    ],
)
def test_what_is_refused(deep, quick, tmp_path, capsys, asked, message):
    assert compress(deep, tmp_path / "out", "--drop-blocks", *asked, *quick) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()
