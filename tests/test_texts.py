"""Texts by name: files of every kind, and data sets."""

import sys
from types import SimpleNamespace

import pytest

from compressor.errors import InputError
from compressor.texts import Text, read_text


def test_files_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nworld")
    (tmp_path / "a.json").write_text('["one", {"text": "two"}]')
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n"two"\n')
    (tmp_path / "mark.jsonl").write_text('"one"\r\n"two"\r\n', encoding="utf-8-sig")
    separated = tmp_path / "separated.jsonl"
    separated.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_text(str(separated)).strings == ["a\u2028b"]
    assert read_text(str(tmp_path / "a.txt")) == Text(
        str(tmp_path / "a.txt"), "windows", ["hello\nworld"]
    )
    for name in ("a.json", "a.jsonl", "mark.jsonl"):
        found = read_text(str(tmp_path / name))
        assert (found.kind, found.strings) == ("documents", ["one", "two"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": 1}', "is not a JSON list but dict"),
        (
            "a.json",
            '["a", 2]',
            "Row 1 of .* is neither a string nor an object with a string as `text`",
        ),
        ("a.json", "[", "a.json is not JSON"),
        ("a.jsonl", '{"text": "x"}\n\n{"body": "x"}', "Line 3 of .* is neither a string nor"),
        ("a.jsonl", '{"text": ["x"]}', "Line 1 of .* is neither a string nor"),
        ("a.jsonl", '"x"\n{"text": "x"', "Line 2 of .* is not JSON"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_text(str(path))


def test_missing_file_that_is_no_data_set_either(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="There is no file 'nowhere/at-all'"):
        read_text("nowhere/at-all")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("org/set", (("org/set",), "train")),
        ("org/set:test", (("org/set",), "test")),
        ("org/set:en:validation", (("org/set", "en"), "validation")),
    ],
)
def test_named_data_sets(monkeypatch, source, asked):
    class Rows(dict):
        column_names = ("text", "url")

    calls = []

    def load_dataset(*name, split):
        calls.append((name, split))
        return Rows(text=["one", "two"])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_text(source) == Text(source, "documents", ["one", "two"])
    assert calls == [asked]
