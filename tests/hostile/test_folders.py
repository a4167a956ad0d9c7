"""Folders that were made to do harm: sizes that are refused before anything is built, files that are
none, links that lead out, code that is not run.
"""

import json
import os
import re
import struct

import pytest
import torch
from edits import edit_config
from hostile_guard import BYTES, outcome
from jobs import compress, said
from safetensors.torch import save

from compressor.analysis.doctor import examine
from compressor.analysis.inspection import inspect
from compressor.analysis.inspection.folder import open_folder
from compressor.config.json_files import MOST_BYTES, read_object
from compressor.config.json_shapes import misfit
from compressor.config.recovery import read_details
from compressor.errors import LONGEST, InputError
from compressor.job.doctor import tidy
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import whole_stack
from compressor.model.families import FAMILIES
from compressor.model.tensors import SINGLE, read_entries
from compressor.text.tokenizer import of_the_tokenizer
from compressor.writing.record import RECORD, read_record, record_in


@pytest.fixture
def copy(llama, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused(read, *given) -> str:
    error = outcome(read, *given)
    assert error is not None
    return str(error)


# -- sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [70, 10**9, 10**30])
def test_more_blocks_than_there_are(copy, count):
    edit_config(copy, num_hidden_layers=count)
    for read in (Checkpoint, open_folder):
        assert f"counts {count} blocks (num_hidden_layers)" in refused(read, copy)


def test_more_blocks_of_what_is_beside_the_language_model(copy):
    edit_config(copy, vision_config={"depth": 10**9})
    for read in (Checkpoint, open_folder, examine):
        assert "counts 1000000000 blocks (depth)" in refused(read, copy)


def test_more_experts_than_there_are():
    """Only the first that is missing is looked for."""
    family = FAMILIES["mixtral"]
    stacked = next(iter(family.experts.parts))
    name = f"model.layers.0.{stacked}"
    said = refused(whole_stack, name, {}, {}, family, 10**12, "folder")
    assert "lacks the tensor" in said and "counts 1000000000000 experts" in said


def test_settings_that_are_longer_than_any(copy):
    """Nothing of them is read: here they would be zeros without end."""
    os.truncate(copy / "config.json", 40 * BYTES)
    for read in (Checkpoint, open_folder, examine):
        assert f"at most {MOST_BYTES:,} of such a file are read" in refused(read, copy)


def test_a_tokenizer_that_is_longer_than_any(copy):
    os.truncate(copy / "tokenizer.json", 40 * BYTES)
    source = Checkpoint(copy)
    assert "tokenizer.json has 42,949,672,960 bytes" in refused(source.tokenizer)


def test_a_header_that_is_longer_than_any(tmp_path):
    file = tmp_path / SINGLE
    file.write_bytes(struct.pack("<Q", 4 * BYTES))
    os.truncate(file, 8 * BYTES)
    assert "The header of" in refused(read_entries, file)


HEADERS = {
    "NaN is no number of JSON": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "a is in its header twice": '{"a": {}, "a": {}}',
    "dtype is in its header twice": '{"a": {"dtype": "F32", "dtype": "F16"}}',
    "__metadata__ is no object": '{"__metadata__": {"a": 5}}',
    "does not place a": '{"a": {"dtype": 5, "shape": [2], "data_offsets": [0, 8]}}',
    "does not place b": '{"b": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}',
    "is not what 8 bytes": f'{{"a": {{"dtype": "F32", "shape": [{2**62}, 4], "data_offsets": [0, 8]}}}}',
    "is not what 0 bytes": f'{{"a": {{"dtype": "F32", "shape": [0, {2**70}], "data_offsets": [0, 0]}}}}',
    "is not what -8 bytes": '{"a": {"dtype": "X", "shape": [2], "data_offsets": [0, -8]}}',
    "begins at byte 8 of the data": (
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},'
        ' "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}'
    ),
}


@pytest.mark.parametrize("message", HEADERS)
def test_headers(tmp_path, message):
    text = HEADERS[message].encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert message in refused(read_entries, tmp_path / SINGLE)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_header_in_another_encoding(tmp_path, encoding):
    """Python's JSON reads these, and no loader does."""
    text = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'.encode(encoding)
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "is not a safetensors file" in refused(read_entries, tmp_path / SINGLE)


# -- what is shown ----------------------------------------------------------------------------------


def test_names_that_a_terminal_would_obey(tmp_path):
    (tmp_path / SINGLE).write_bytes(save({"\x1b[2Jgone\x07" + "x" * 9000: torch.zeros(1)})[:-1])
    said = refused(Checkpoint.__init__, Checkpoint.__new__(Checkpoint), tmp_path)
    assert "\x1b" not in said
    error = InputError("\x1b]0;title\x07 \ud800" + "x" * 9000 + " the end")
    assert str(error).startswith("\\x1b]0;title\\x07 \\ud800xx") and str(error).endswith("the end")
    assert len(str(error)) <= LONGEST


# -- files that are none, and links -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE, "README.md"])
def test_pipes_and_devices(copy, name):
    """Reading a pipe that nobody writes to never ends."""
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    for read in (Checkpoint, open_folder, examine):
        assert f"{name} is no file." in refused(read, copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    assert f"{name} is no file." in refused(Checkpoint, copy)
    with pytest.raises(InputError, match="is no file"):
        read_object(copy / name)


def test_a_card_that_is_a_link_out_stays_behind(copy, tmp_path):
    (tmp_path / "secret").write_text("of somebody else")
    (copy / "README.md").symlink_to(tmp_path / "secret")
    out = tmp_path / "out"
    out.mkdir()
    source = Checkpoint(copy)
    source.patient = source
    tidy(source, out)
    assert [*out.iterdir()] == []


def test_unfinished_results_that_are_links(llama, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    for end in (".partial", ".work"):
        link = tmp_path / f"out{end}"
        link.symlink_to(tmp_path / "elsewhere")
        assert compress(llama, tmp_path / "out", "--keep", 0.8, "--no-verify") == 2
        assert f"out{end} is a link" in said(capsys)
        link.unlink()
    assert [*(tmp_path / "elsewhere").iterdir()] == []


# -- records, shapes and libraries ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"recovery": "x"}, "`recovery` is 'x' and not an object"),
        ({"plan": {"blocks": {}}}, "`blocks` is {} and not a list"),
        (
            {"dropped_blocks": [1, True]},
            "an entry of `dropped_blocks` is True and not a whole number",
        ),
        ({"layout": 5}, "`layout` is 5 and not a text"),
    ],
)
def test_records_of_another_form(copy, record, message):
    (copy / RECORD).write_text(json.dumps(record))
    assert message in refused(read_record, copy)
    assert record_in(copy) == {} and inspect(copy)["dropped_blocks"] is None


def test_shapes():
    shape = {"a": [{"b": int}], "c": float, "d": dict}
    assert misfit({"a": [{"b": 5}, {}], "c": 1, "d": None, "e": "?"}, shape) == ""
    assert misfit([], shape) == "it is [] and not an object"
    assert misfit({"a": [{"b": 5.0}]}, shape) == "`b` is 5.0 and not a whole number"
    assert misfit({"c": "1"}, shape) == "`c` is '1' and not a number"


def test_a_library_that_panics(copy):
    """What a library in Rust raises where it is wrong itself is no Exception."""
    panic = type("PanicException", (BaseException,), {})
    said = "does not load: index out of bounds"
    with pytest.raises(InputError, match=said), of_the_tokenizer(copy):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), of_the_tokenizer(copy):
        raise KeyboardInterrupt


# Nine of the line before in every line.
ALIASES = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 8000, "nested too deeply"),
        ("[" * 9000, "at most 8,192"),
        ("- " * 4000, "cannot be read"),
        ("2020-99-99", "month must be in"),
        ("rank: " + "9" * 600, "rank in .* is int, and must be a number"),
        ("learning_rate: " + "9" * 5000, "cannot be read"),
        (ALIASES, "but has .'a', 'b', 'c'"),
        ("rank: &a [*a]", "rank in .* is list, and must be a number"),
        ("!!set {rank}", "but is a set"),
        ("? [1, 2]\n: 3", "cannot be read"),
    ],
)
def test_recovery_settings(tmp_path, text, message):
    """YAML, whose aliases stand for more than any memory has, and whose numbers raise what they like."""
    (tmp_path / "recovery.yaml").write_text(text)
    assert re.search(message, refused(read_details, tmp_path / "recovery.yaml"))
