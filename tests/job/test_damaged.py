"""Folders and files that are damaged, or that no tool should have written: sentences, no tracebacks."""

import json
import re
import shutil
import struct

import pytest
import torch
from edits import edit_config, edit_json, edit_tensors
from jobs import compress, said, stage

from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE, read_header
from compressor.planning.plan import Plan
from compressor.writing.side_files import left_behind

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" * 5000


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


# -- weights ----------------------------------------------------------------------------------------


@pytest.fixture
def damaged(copy):
    """The function that makes a change to the header of the weights; the data stay where they are."""

    def change(edit) -> None:
        file = copy / SINGLE
        content = file.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = edit(json.loads(content[8 : 8 + length]))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return change


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: [], "its header is no JSON object"),
        (lambda header: DEEP.encode(), "is not a safetensors file"),
        (lambda header: header | {NORM: {"dtype": "F32", "shape": [32]}}, f"does not place {NORM}"),
        (lambda header: header | {NORM: 5}, f"does not place {NORM}"),
        (
            lambda header: header | {NORM: header[NORM] | {"shape": [33]}},
            r"\[33\] is not what 128 bytes",
        ),
        (
            lambda header: header | {NORM: header[NORM] | {"shape": [-32]}},
            "is not what 128 bytes hold",
        ),
        (
            lambda header: header | {NORM: header[NORM] | {"data_offsets": [0, 128]}},
            "begins at byte .* of the data and not at",
        ),
    ],
)
def test_a_header_that_is_not_of_the_data(copy, damaged, edit, message):
    damaged(edit)
    with pytest.raises(InputError, match=message):
        Checkpoint(copy)


def test_bytes_behind_the_last_tensor(copy, capsys):
    with (copy / SINGLE).open("ab") as file:
        file.write(b"junk")
    for command in ("estimate", "inspect"):
        assert stage(command, copy) == (2 if command == "estimate" else 0)
    assert "has 4 bytes behind its last tensor" in said(capsys)


def test_a_pointer_of_git_lfs(copy):
    (copy / SINGLE).write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(InputError, match="a pointer of git-lfs and no weights; run `git lfs pull`"):
        read_header(copy / SINGLE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(copy, text_file, tmp_path, capsys, value):
    name = "model.layers.1.mlp.down_proj.weight"
    edit_tensors(copy, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    assert stage("eval", copy, "--text", text_file, "--length", 32) == 2
    assert f"{name} holds NaN or infinite values" in said(capsys)
    assert stage("generate", copy, tmp_path / "own.jsonl", "--tokens", 50) == 2
    assert f"{name} holds NaN or infinite values" in said(capsys)


# -- configs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": 5},
        {"architectures": {"a": 1}},
        {"model_type": ["llama"]},
        {"num_hidden_layers": "5"},
        {"quantization_config": "x"},
    ],
)
def test_settings_of_another_kind(copy, changes):
    edit_config(copy, **changes)
    with pytest.raises(InputError) as raised:
        Checkpoint(copy)
    assert "\n" not in str(raised.value)
    try:
        inspect(copy)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", [DEEP, LONG])
def test_json_that_is_too_deep_or_too_long(copy, value):
    (copy / "config.json").write_text(f'{{"model_type": "llama", "x": {value}}}')
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        Checkpoint(copy)


@pytest.mark.parametrize("value", [True, "true", 1])
def test_attention_both_ways_however_it_is_spelled(copy, value):
    edit_config(copy, use_bidirectional_attention=value)
    with pytest.raises(InputError, match="every token sees those behind it"):
        Checkpoint(copy)


@pytest.mark.parametrize("value", [-1, 0])
def test_no_number_of_positions_is_none(copy, value):
    edit_config(copy, max_position_embeddings=value)
    assert Checkpoint(copy).positions is None


def test_half_a_character_in_the_config_goes_along(copy, tmp_path, text_file):
    edit_config(copy, note="half \ud800 of one")
    options = ("--calibration", text_file, "--length", 32, "--method", "magnitude")
    assert compress(copy, tmp_path / "out", "--keep", 0.8, "--repair", "none", *options) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["note"] == "half \ud800 of one"


def test_dtypes_that_transformers_would_take_otherwise(copy):
    assert Checkpoint(copy).notes == []
    edit_config(copy, dtype="bfloat16", torch_dtype="bfloat16")
    (note,) = Checkpoint(copy).notes
    assert (
        "says bfloat16, and no weight is stored so. They are read, computed with and written as float32"
        in note
    )
    edit_json(copy / "config.json", dtype=None, torch_dtype=None)
    assert Checkpoint(copy).notes == []

    def mix(tensors) -> None:
        tensors[NORM] = tensors[NORM].bfloat16()

    edit_tensors(copy, mix)
    (note,) = Checkpoint(copy).notes
    assert "several dtypes" in note and "as float32, as most of them are" in note
    edit_json(copy / "config.json", dtype="bfloat16")
    assert Checkpoint(copy).notes == [] and Checkpoint(copy).dtype == torch.bfloat16


# -- texts, plans, records, links -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (LONG, "is not JSON"),
        (DEEP, "is not JSON"),
        ('{"text": "a", "x": ' + "[" * 900 + "]" * 900 + "}", "(nested too deeply|is not JSON)"),
    ],
)
def test_rows_that_are_too_deep_or_too_long(llama, tmp_path, capsys, row, message):
    text = tmp_path / "rows.jsonl"
    text.write_text('{"text": "a row of some letters"}\n' + row + "\n")
    assert stage("eval", llama, "--text", text) == 2
    found = said(capsys)
    assert "Line 2 of" in found and re.search(message, found)


def test_names_in_capitals_are_of_the_same_kind(llama, tmp_path, capsys):
    rows = "".join(json.dumps({"text": f"a row of letters number {i}"}) + "\n" for i in range(9))
    for name in ("rows.jsonl", "ROWS.JSONL"):
        (tmp_path / name).write_text(rows)
        assert stage("eval", llama, "--text", tmp_path / name, "--json") == 0
    shown = capsys.readouterr().out.replace("ROWS.JSONL", "rows.jsonl")
    half = len(shown) // 2
    assert shown[:half] == shown[half:]


@pytest.mark.parametrize("blocks", [None, [3], {"a": 1}])
def test_a_plan_that_is_none(tmp_path, blocks):
    (tmp_path / "plan.json").write_text(json.dumps({"blocks": blocks, "about": {}}))
    with pytest.raises(InputError, match="is not a plan"):
        Plan.load(tmp_path / "plan.json")


def test_records_that_are_damaged_or_of_another_source(llama, text_file, tmp_path, capsys):
    out, options = tmp_path / "out", ("--calibration", text_file, "--length", 32, "--samples", 4)
    given = (*options, "--method", "magnitude", "--repair", "none", "--no-verify")
    assert compress(llama, out, "--keep", 0.7, *given) == 0
    assert stage("verify", out, "--source", out) == 5
    assert "is not one for" in (found := said(capsys)) and "the model it was cut from?" in found
    (out / "compression.json").write_text("{")
    assert stage("verify", out, "--source", llama) == 2
    assert "compression.json is not valid JSON" in said(capsys)


def test_links_out_of_the_folder_stay_behind(copy, tmp_path):
    (tmp_path / "secret").write_text("of somebody else")
    (copy / "notes.txt").symlink_to(tmp_path / "secret")
    (copy / "own.txt").symlink_to(copy / "generation_config.json")
    (said_of_it,) = left_behind(Checkpoint(copy))
    assert "notes.txt (a link out of the folder)" in said_of_it and "own.txt" not in said_of_it


@pytest.mark.parametrize("option", ["--calibration", "--calibration-also", "--evaluation"])
def test_a_text_that_is_not_there_is_missed_at_once(llama, tmp_path, capsys, option):
    assert compress(llama, tmp_path / "out", "--keep", 0.8, option, tmp_path / "no.jsonl") == 2
    assert f"no.jsonl' ({option})." in said(capsys)


def test_files_are_no_larger_than_asked_for(llama, text_file, tmp_path):
    options = (
        "--calibration",
        text_file,
        "--length",
        32,
        "--method",
        "magnitude",
        "--repair",
        "none",
    )
    for most in (84_000, 90_000, 97_000, 110_000):
        out = tmp_path / str(most)
        assert compress(llama, out, "--target-bytes", most, *options, "--no-verify") == 0
        assert 0.95 * most < (out / SINGLE).stat().st_size <= most
