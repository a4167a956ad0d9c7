"""Texts by name: a file, here or at a URL, Python's standard library or its prose, or a data set of the
hub.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import NOT_JSON, InputError, in_a_line
from compressor.text.stdlib_text import stdlib_documents, stdlib_prose

STDLIB = {
    "stdlib": (stdlib_documents, "train"),
    "stdlib-held-out": (stdlib_documents, "held-out"),
    "stdlib-prose": (stdlib_prose, "train"),
    "stdlib-prose-held-out": (stdlib_prose, "held-out"),
}
ROWS = (".json", ".jsonl")
LINE_ENDS = re.compile("\r\n?")
URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
# Halves of a pair that stands for one character in UTF-16. JSON can hold one alone; no text can.
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Text:
    """Strings and how they are to be read: `documents` one by one, or `windows` over all of them.

    part: which part of the source they are, where they are not all of it. replaced: `characters` that
    no UTF-8 holds, which are U+FFFD instead, and where the `first` was.
    """

    source: str
    kind: str
    strings: list[str]
    replaced: dict | None = None
    part: str | None = None

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for string in self.strings:
            digest.update(string.encode() + b"\0")
        return digest.hexdigest()


def read_text(source: str) -> Text:
    """Read a source: a text file, a JSON list or JSONL, one of `STDLIB`, or a hub data set.

    What stands in a list or in a line is a string, or an object whose `text` is one. A file may be at a
    URL of any kind that fsspec opens (https, s3, gs, hf, zip). A hub data set is written NAME,
    NAME:SPLIT or NAME:CONFIG:SPLIT and needs `datasets`.
    """
    if source in STDLIB:
        documents, split = STDLIB[source]
        return Text(source, "windows", documents(split))
    is_file = is_there(source)
    if is_file and Path(source).suffix.lower() not in ROWS:
        content = _content(source)
        return Text(source, "windows", [content] if content.strip() else [])
    rows, replaced = mended(read_rows(source) if is_file else _hub_rows(source))
    return Text(source, "documents", [_string(*row) for row in rows], replaced)


def is_there(source: str) -> bool:
    """Whether a source is a file that is here, or is said to be at a URL."""
    return URL.fullmatch(source) is not None or Path(source).exists()


def names_a_file(source: str) -> bool:
    """Whether a source that is not there can only be a file, and no data set."""
    return Path(source).suffix.lower() in (".txt", *ROWS)


def read_rows(path: Path | str) -> list[tuple[str, Any]]:
    """Each value of a JSON list or of the lines of a JSONL file, behind a name of where it stands."""
    content = _content(path)
    if Path(path).suffix.lower() == ".json":
        values = _parsed(content, str(path))
        if not isinstance(values, list):
            raise InputError(f"{path} is not a JSON list but {type(values).__name__}.")
        return [(f"Row {i} of {path}", value) for i, value in enumerate(values)]
    named = [(f"Line {i} of {path}", line) for i, line in enumerate(content.split("\n"), 1)]
    return [(where, _parsed(line, where)) for where, line in named if line.strip()]


def mended(
    rows: list[tuple[str, Any]],
) -> tuple[list[tuple[str, Any]], dict | None]:
    """Rows whose strings can be encoded, and how many characters were replaced and where the first."""
    clean, count, first = [], 0, None
    for where, value in rows:
        try:
            value, replaced = mend(value)
        except RecursionError as error:
            raise InputError(f"{where} is nested too deeply to be read.") from error
        if replaced and first is None:
            first = where
        count += replaced
        clean.append((where, value))
    return clean, {"characters": count, "first": first} if count else None


def mend(value: Any) -> tuple[Any, int]:
    """A JSON value whose strings have U+FFFD for halves of characters; how many of these there were."""
    if isinstance(value, str):
        return SURROGATES.subn("\ufffd", value)
    if isinstance(value, list):
        parts = [mend(item) for item in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        keys, parts = (mend([*items]) for items in (value.keys(), value.values()))
        return dict(zip(keys[0], parts[0], strict=True)), keys[1] + parts[1]
    return value, 0


def _content(path: Path | str) -> str:
    is_url = URL.fullmatch(str(path))
    try:
        data = _fetched(str(path)) if is_url else Path(path).read_bytes()
        text = data.decode("utf-8-sig")  # with or without the mark that Windows writes
        return LINE_ENDS.sub("\n", text)
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _fetched(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except (ImportError, ValueError) as error:  # of what no package here opens
        raise InputError(f"{url} cannot be opened: {in_a_line(error)}") from error
    except Exception as error:  # each kind of place has errors of its own
        raise InputError(f"{url} cannot be read: {in_a_line(error)}") from error


def _parsed(content: str, where: str) -> object:
    try:
        return json.loads(content)
    except NOT_JSON as error:
        raise InputError(f"{where} is not JSON: {error}.") from error


def _string(where: str, value: object) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f"{where} is neither a string nor an object with a string as `text`.")
    return text


def _hub_rows(source: str) -> list[tuple[str, Any]]:
    if names_a_file(source):
        raise InputError(f"There is no file {source!r}.")
    name, *rest = source.split(":")
    split = rest[-1] if rest else "train"
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"There is no file {source!r}; to use a hub data set of that name, "
            "install `datasets` (pip install 'compressor-llm[hub]')."
        ) from None
    try:
        rows = load_dataset(name, *rest[:-1], split=split)
    except Exception as error:  # whatever the hub client raises, it is the same news for the user
        raise InputError(
            f"There is no file {source!r}, and no data set of that name could be loaded: {error}"
        ) from error
    if "text" not in rows.column_names:
        raise InputError(f"The data set {source!r} has no column 'text' but {rows.column_names}.")
    return [(f"Row {i} of {source}", value) for i, value in enumerate(rows["text"])]
