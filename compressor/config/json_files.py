"""JSON files that hold an object."""

import json
from pathlib import Path

from compressor.errors import NOT_JSON, InputError, failed

# How what no UTF-8 holds (lone surrogates) is written: as JSON escapes it.
ESCAPED = "backslashreplace"


def read_object(file: Path, hint: str = "") -> dict:
    """A JSON file that holds an object; `hint` ends the sentence where it does not."""
    ending = f"; {hint}." if hint else "."
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent} has no {file.name}{ending}") from None
    except NOT_JSON as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} is no JSON object but {str(value)[:40]}{ending}")
    return value


def object_in(file: Path) -> dict:
    """The object that a JSON file holds; nothing where there is none, or it cannot be read, unless it is
    the machine that fails.
    """
    try:
        return read_object(file)
    except (OSError, InputError) as error:
        if failed(error):
            raise
        return {}
