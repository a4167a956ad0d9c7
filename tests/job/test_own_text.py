"""Jobs that calibrate on what the model writes itself."""

import json

import pytest
from jobs import compress, said, stage

import compressor
from compressor.job.own_text import FILE

OWN = ["--calibration", "own", "--samples", 6, "--length", 16]


def test_a_job_writes_it_once_and_goes_on_with_it(llama, tmp_path, capsys, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    dest, options = tmp_path / "small", ["--keep", 0.8, "--repair", "ridge", *OWN]
    monkeypatch.setattr("compressor.job.compress.measure_cuts", killed)
    assert compress(llama, dest, *options) == 130
    file = tmp_path / "small.work" / FILE
    text = file.read_text(encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setattr("compressor.job.own_text.written", killed)
    assert compress(llama, dest, *options, "--resume", "--json") == 0
    monkeypatch.undo()
    found = json.loads(capsys.readouterr().out)
    record = json.loads((dest / "compression.json").read_text())
    told = record["plan"]["about"]["scores"]["calibration"]
    assert told["source"] == record["evaluation"]["source"] == "own"
    assert found["perplexity_before"] > 1 and not file.exists()
    # The stage writes the same, which then gives the same result.
    longer = 6 * 16 + 6 * 16 // 8
    given = tmp_path / "own.jsonl"
    sizes = ["--tokens", longer, "--length", 16]
    assert stage("generate", llama, given, *sizes) == 0
    assert given.read_text(encoding="utf-8") == text
    options[options.index("own")] = given
    assert compress(llama, tmp_path / "same", *options) == 0
    plans = [
        json.loads((folder / "compression.json").read_text())["plan"]["blocks"]
        for folder in (dest, tmp_path / "same")
    ]
    assert plans[0] == plans[1]


def test_beside_another_text(llama, text_file, tmp_path, capsys):
    options = ["--calibration", text_file, "--calibration-also", "own", *OWN[2:]]
    assert compress(llama, tmp_path / "small", "--keep", 0.8, *options) == 0
    record = json.loads((tmp_path / "small" / "compression.json").read_text())
    about = record["plan"]["about"]["scores"]["calibration"]
    assert about["also"]["source"] == "own" and about["source"] == str(text_file)


def test_scored_on_it(llama, tmp_path):
    out = tmp_path / "scores.safetensors"
    assert stage("score", llama, "--out", out, *OWN) == 0
    assert compressor.Scores.load(out).about["calibration"]["source"] == "own"


def test_where_nothing_writes_it(llama, tmp_path, capsys):
    with pytest.raises(compressor.InputError, match=r"compressor generate SOURCE own\.jsonl"):
        compressor.tokens("own", llama)
    given = ["--recover", "lora:1", "--calibration", "own"]
    assert stage("recover", llama, tmp_path / "out", *given) == 2
    assert "compressor generate SOURCE own.jsonl" in said(capsys)
