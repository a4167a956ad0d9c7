"""JSON files, read in one place: what is none, or too much, is a sentence and takes no memory."""

import json
from pathlib import Path
from typing import Any

from compressor.errors import NOT_JSON, InputError, failed

# How what no UTF-8 holds (lone surrogates) is written: as JSON escapes it.
ESCAPED = "backslashreplace"
# Of a file that describes a model: several times the largest known. Python makes up to 25 times as much
# of it, so this is also what keeps a hostile one within a gigabyte.
MOST_BYTES = 32 << 20
MOST_BYTES_OF_UNITS = 512 << 20  # of one that lists units: those of the largest mixtures take half


def read_json(file: Path, hint: str = "", most: int = MOST_BYTES) -> Any:
    """What a JSON file holds; `hint` ends the sentence where it is missing."""
    ending = f"; {hint}." if hint else "."
    try:
        check_file(file, most)
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent} has no {file.name}{ending}") from None
    except NOT_JSON as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error


def read_object(file: Path, hint: str = "", most: int = MOST_BYTES) -> dict:
    """A JSON file that holds an object; `hint` ends the sentence where it does not."""
    value = read_json(file, hint, most)
    if not isinstance(value, dict):
        ending = f"; {hint}." if hint else "."
        raise InputError(f"{file} is no JSON object but {str(value)[:40]}{ending}")
    return value


def object_in(file: Path, most: int = MOST_BYTES) -> dict:
    """The object that a JSON file holds; nothing where there is none, or it cannot be read, unless it is
    the machine that fails.
    """
    try:
        return read_object(file, most=most)
    except (OSError, InputError) as error:
        if failed(error):
            raise
        return {}


def check_file(file: Path, most: int | None = None) -> None:
    """Refuse what is there and is no file, as reading a pipe or a device may never end, and what has
    more than so many bytes.
    """
    size = file.stat().st_size
    if not file.is_file():
        raise InputError(f"{file} is no file.")
    if most is not None and size > most:
        raise InputError(
            f"{file} has {size:,} bytes, and at most {most:,} of such a file are read."
        )
