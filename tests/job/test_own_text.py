"""Jobs that calibrate on what the model writes itself."""

import json
import re
import shutil

import pytest
import torch
from jobs import compress, said, stage

import compressor
from compressor.job.interruption import Interrupted
from compressor.job.own_text import BATCH, FEWEST_ROWS, FILE, room_to_write
from compressor.model.checkpoint import Checkpoint
from compressor.text.set_aside import LEAST

FEW = ["--samples", 6, "--length", 16]
OWN = ["--calibration", "own", *FEW]


def killed(*_):
    raise Interrupted


def calibrated_on(folder) -> str:
    record = json.loads((folder / "compression.json").read_text(encoding="utf-8"))
    return record["plan"]["about"]["scores"]["calibration"]["source"]


def test_a_job_writes_it_once_and_goes_on_with_it(llama, tmp_path, capsys, monkeypatch):
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
    assert calibrated_on(dest) == record["evaluation"]["source"] == "own"
    assert found["perplexity_before"] > 1 and not file.exists()
    # The stage writes the same, which then gives the same result.
    longer = 6 * 16 + LEAST * 16  # the end measures
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
    assert about["also"]["source"] == "own" and about["source"] == text_file.name


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


def test_without_a_text_named_it_is_that(llama, tmp_path, capsys):
    assert compress(llama, tmp_path / "small", "--keep", 0.8, *FEW) == 0
    assert calibrated_on(tmp_path / "small") == "own" and "stdlib-prose" not in said(capsys)
    compressor.compress(llama, tmp_path / "again", keep=0.8, samples=6, length=16)
    assert calibrated_on(tmp_path / "again") == "own"
    plan = tmp_path / "plan.json"
    record = json.loads((tmp_path / "small" / "compression.json").read_text(encoding="utf-8"))
    plan.write_text(json.dumps(record["plan"]), encoding="utf-8")
    # The stage `cut` writes the same text, and so the same weights.
    assert stage("cut", llama, tmp_path / "cut", "--plan", plan, *FEW) == 0
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("small", "cut")]
    assert weights[0] == weights[1]


def test_prose_and_why_where_the_model_cannot_write(llama, tmp_path, capsys):
    small = ["--keep", 0.8, "--repair", "ridge", *FEW]
    assert compress(llama, tmp_path / "tight", *small, "--max-memory", "100KB") == 0
    needed = "writing it would take [0-9.]+ [KMG]B of memory, and 100 KB are free"
    assert calibrated_on(tmp_path / "tight") == "stdlib-prose"
    assert re.search(needed, " ".join(capsys.readouterr().out.split()))


def test_prose_for_a_tokenizer_without_ends(llama, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    named = source / "tokenizer_config.json"
    settings = json.loads(named.read_text(encoding="utf-8"))
    for end in ("bos_token", "eos_token"):
        settings.pop(end, None)
    named.write_text(json.dumps(settings), encoding="utf-8")
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    assert compress(source, tmp_path / "small", "--keep", 0.8, "--repair", "ridge", *FEW) == 0
    assert calibrated_on(tmp_path / "small") == "stdlib-prose"
    assert "neither BOS nor EOS" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_job_goes_on_with_the_text_it_chose(llama, tmp_path, monkeypatch):
    dest, options = tmp_path / "small", ["--keep", 0.8, "--repair", "ridge", *FEW]
    monkeypatch.setattr("compressor.job.compress.measure_cuts", killed)
    assert compress(llama, dest, *options, "--max-memory", "100KB") == 130
    monkeypatch.undo()
    assert compress(llama, dest, *options, "--resume") == 0  # there is room now
    assert calibrated_on(dest) == "stdlib-prose"


def test_the_text_is_kept_though_nothing_else_is_done(llama, tmp_path, capsys, monkeypatch):
    dest, options = tmp_path / "small", ["--keep", 0.8, "--repair", "ridge", *FEW]
    monkeypatch.setattr("compressor.job.compress.score_units", killed)
    assert compress(llama, dest, *options) == 130
    assert "add --resume to go on" in said(capsys)
    monkeypatch.undo()
    monkeypatch.setattr("compressor.job.own_text.written", killed)
    assert compress(llama, dest, *options, "--resume", "--samples", 7) == 2
    refused = said(capsys)
    assert "The interrupted job had --samples 6" in refused and "--resume to go on" not in refused
    assert compress(llama, dest, *options, "--resume") == 0


def test_asked_for_where_there_is_no_room(llama, tmp_path, capsys):
    limit = ["--max-memory", "100KB"]
    assert compress(llama, tmp_path / "small", "--keep", 0.8, *OWN, *limit) == 2
    assert re.search(
        "cannot be had, since writing it would take .* and 100 KB are free", said(capsys)
    )


def test_where_nothing_is_calibrated_it_is_not_written(llama, tmp_path, capsys):
    options = ["--keep", 0.8, "--method", "magnitude", "--repair", "none", *FEW]
    assert compress(llama, tmp_path / "small", *options) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing is calibrated, so perplexity is measured on stdlib-prose" in told


def test_rows_depend_on_the_model_alone(llama):
    source = Checkpoint(llama)
    weights = 2 * source.parameters
    row = 2 * 3 * 4 * 4 * 2  # keys and values of 3 blocks, 4 KV groups, 4 dimensions, 2 bytes
    rows, needed = room_to_write(source, torch.bfloat16, 16)
    assert (rows, needed) == (BATCH, weights + BATCH * 16 * row)
    long = 1 << 24
    rows, needed = room_to_write(source, torch.bfloat16, long)
    assert (rows, needed) == (FEWEST_ROWS, weights + FEWEST_ROWS * long * row)
