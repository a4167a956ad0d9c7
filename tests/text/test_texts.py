"""Texts by name: files of every kind, and data sets."""

import json
import sys
import zipfile
from types import SimpleNamespace

import fsspec
import pytest

from compressor.errors import InputError
from compressor.text.texts import Text, read_text


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


HALVES = r'["whole", "a\ud83d", {"text": "b\udc00\ud800c", "\ud83d": "\ud83d"}]'


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.json", HALVES, "Row 1"),
        ("a.jsonl", "\n".join(json.dumps(row) for row in json.loads(HALVES)), "Line 2"),
    ],
)
def test_halves_of_characters_are_replaced_and_counted(tmp_path, name, content, first):
    (tmp_path / name).write_text(content)
    text = read_text(str(tmp_path / name))
    assert text.strings == ["whole", "a\ufffd", "b\ufffd\ufffdc"]
    assert text.replaced == {"characters": 5, "first": f"{first} of {tmp_path / name}"}
    assert len(text.sha256) == 64


def test_whole_pairs_are_characters(tmp_path):
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00"]')
    text = read_text(str(tmp_path / "a.json"))
    assert (text.strings, text.replaced) == (["\U0001f600"], None)


@pytest.mark.parametrize(
    ("name", "content", "kind", "strings"),
    [
        ("notes.txt", b"\xef\xbb\xbfone\r\ntwo", "windows", ["one\ntwo"]),
        ("a.jsonl", b'{"text": "one"}\n"two"\n', "documents", ["one", "two"]),
    ],
)
def test_files_at_urls(tmp_path, name, content, kind, strings):
    """Of a place that fsspec has in memory, and in an archive, as of a file that is here."""
    url = f"memory://texts/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(content)
    (tmp_path / name).write_bytes(content)
    for source in (url, str(tmp_path / name)):
        found = read_text(source)
        assert (found.source, found.kind, found.strings) == (source, kind, strings)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "three")
    assert read_text(f"zip://notes.txt::{tmp_path}/a.zip").strings == ["three"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://texts/none.txt", "cannot be read"),
        ("nowhere://texts/none.txt", "cannot be opened: Protocol not known"),
    ],
)
def test_urls_where_nothing_is(url, said):
    with pytest.raises(InputError, match=f"{url} {said}"):
        read_text(url)


def test_missing_file_that_is_no_data_set_either(monkeypatch):
    def unknown(name, split):
        raise FileNotFoundError(f"Data set {name!r} is not known.")

    for datasets, told in (
        (
            SimpleNamespace(load_dataset=unknown),
            "could be loaded: Data set 'nowhere/at-all' is not",
        ),
        (None, "install `datasets`"),  # as where it is not installed
    ):
        monkeypatch.setitem(sys.modules, "datasets", datasets)
        with pytest.raises(InputError, match=f"There is no file 'nowhere/at-all'.*{told}"):
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


@pytest.mark.parametrize(
    ("values", "strings", "first"),
    [
        (["one", "a\ud83d"], ["one", "a\ufffd"], "Row 1 of org/set"),
        (["one", "two"], ["one", "two"], None),
    ],
)
def test_halves_of_characters_in_a_data_set(monkeypatch, values, strings, first):
    rows = type("Rows", (), {"column_names": ["text"], "__getitem__": lambda self, key: values})()
    loader = SimpleNamespace(load_dataset=lambda *name, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", loader)
    text = read_text("org/set")
    assert text.strings == strings
    assert text.replaced == (first and {"characters": 1, "first": first})


def test_a_data_set_with_a_row_that_is_no_string(monkeypatch):
    rows = type("Rows", (), {"column_names": ["text"], "__getitem__": lambda *_: ["one", None]})()
    loader = SimpleNamespace(load_dataset=lambda *name, split: rows)
    monkeypatch.setitem(sys.modules, "datasets", loader)
    with pytest.raises(InputError, match="Row 1 of org/set is neither a string nor"):
        read_text("org/set")
