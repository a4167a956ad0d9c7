"""`compressor doctor`: its words, its exit codes, and the fresh process."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from jobs import said, stage
from spoiled import FFN, logits, narrow_ffn

import compressor
from compressor.analysis.inspection import inspect, tables
from compressor.errors import InputError, MendableError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE


@pytest.fixture
def narrow(folder):
    """Narrower than its config says."""
    edit_tensors(folder, lambda t: [narrow_ffn(t, block, FFN) for block in range(3)])
    return folder


def test_it_says_what_was_wrong_and_what_it_did(narrow, right, capsys):
    out = narrow.with_name("fixed")
    (narrow / "README.md").write_text("# A model\n")
    assert stage("doctor", narrow, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["found"] == [
        {
            "fault": "FFN width",
            "seen": "config.json says intermediate_size 48, the tensors 20.",
            "done": "intermediate_size is 20 now.",
        }
    ]
    report = result["report"]
    assert report["loads"] and len(report["generated"]) == 4
    assert report["logits_difference"] < 1e-4
    assert (out / "README.md").read_text() == "# A model\n"
    assert json.loads((out / "compression.json").read_text())["doctor"]["found"] == result["found"]
    assert torch.allclose(logits(out), right, atol=1e-5)
    assert compressor.doctor(out, narrow.with_name("again")) == {
        "path": str(out),
        "out": None,
        "found": [],
    }


def test_nothing_is_wrong(folder, capsys):
    out = folder.with_name("fixed")
    assert stage("doctor", folder, "--out", out) == 0
    assert "Nothing is wrong" in capsys.readouterr().out and not out.exists()


def test_words_for_people(narrow, capsys):
    edit_config(narrow, dtype="float16")
    assert stage("doctor", narrow, "--out", narrow.with_name("fixed"), "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("config.json says intermediate_size 48, the tensors 20. ")
    assert lines[1].startswith(
        "config.json says dtype float16, and weights are stored as float32. "
    )
    assert "layout uniform, verified: loads, writes text, logits within" in lines[2]
    again = ("doctor", narrow, "--out", narrow.with_name("fixed"), "--quiet")
    assert stage(*again) == 2 and "exists" in said(capsys)
    assert stage(*again, "--overwrite", "--no-verify") == 0
    assert "not verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}", "--out", "{folder}/fixed"], "lies in the source"),
        (["{folder}", "--out", "{parent}"], "holds the source"),
        (["{folder}", "--out", "{parent}/taken"], "exists"),
        (["{parent}/none", "--out", "{parent}/fixed"], "There is no folder"),
        (["{folder}", "--out", "{parent}/fixed", "--rope", "new"], "--rope is rope_scaling or"),
        (["{folder}", "--out", "{parent}/fixed", "--layout", "wide"], "'wide' is not one of"),
        (["{folder}", "--out", "{parent}/fixed", "--head-dim", "0"], "head-dim"),
        (["{folder}"], "--out"),
    ],
)
def test_bad_input(narrow, capsys, arguments, words):
    (narrow.with_name("taken")).mkdir()
    (narrow.with_name("taken") / "a").write_text("")
    names = {"folder": narrow, "parent": narrow.parent}
    assert stage("doctor", *(each.format(**names) for each in arguments)) == 2
    assert words in said(capsys)
    assert sorted(p.name for p in narrow.parent.iterdir()) == ["folder", "taken"]


def test_a_result_that_computes_otherwise_is_not_published(narrow, cure, monkeypatch):
    import compressor.job.doctor as job

    monkeypatch.setattr(
        job, "reference", lambda source, ids: [torch.randn(len(i[0]), 120) for i in ids]
    )
    with pytest.raises(VerificationError, match="differ from"):
        cure()
    assert [p.name for p in narrow.parent.iterdir()] == ["folder"]


def test_refusals_name_it(narrow, tmp_path):
    hint = rf"`compressor doctor {narrow} --out FIXED` mends this\."
    with pytest.raises(MendableError, match=hint):
        Checkpoint(narrow)
    assert (
        list(tables(inspect(narrow)))[-1]
        == f"Mend what can be mended: compressor doctor {narrow} --out FIXED"
    )
    shutil.move(narrow / SINGLE, narrow / "model.fp16.safetensors")
    with pytest.raises(MendableError, match=hint):
        Checkpoint(narrow)
    (narrow / "model.fp16.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither .* nor model\.safetensors\.index\.json\.$"):
        Checkpoint(narrow)


def test_state_dicts_of_every_family(any_family, folder, cure):
    from spoiled import as_state_dict

    shutil.rmtree(folder)
    shutil.copytree(any_family, folder)
    before = logits(folder)
    as_state_dict(folder)
    result, out = cure()
    assert result["report"]["logits_difference"] < 1e-4
    assert torch.allclose(logits(out), before, atol=1e-5)
