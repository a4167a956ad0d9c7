"""YAML files of options, read in one place: what is none, or too much, is a sentence."""

from dataclasses import Field
from pathlib import Path
from typing import Any

from compressor.config.json_files import check_file
from compressor.config.options import kind_of
from compressor.errors import InputError

MOST_BYTES = 8 << 10  # of a file with a line for each of a dozen options
MOST_BRACKETS = 100  # YAML takes the square of their number


def read_yaml(file: Path, called: str) -> Any:
    """What a YAML file holds; None of an empty one. called: the file in a sentence."""
    import yaml

    try:
        check_file(file, MOST_BYTES)
        text = file.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError("it is nested too deeply")
        return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{called} cannot be read: {reason}.") from error


def named(keys: list) -> list[str]:
    """Keys as they are shown: not as they stand there where they are no text, since aliases and numbers
    without end can be longer than any memory.
    """
    return sorted(key if isinstance(key, str) else type(key).__name__ for key in keys)


def typed(described: Field, value: Any, called: str, name: str = "") -> object:
    """A value as the option has it: YAML reads 1e-4 as a text, and 1 as a whole number."""
    kind = kind_of(described)
    shown = repr(value) if isinstance(value, str | float | bool) else type(value).__name__
    try:
        if not isinstance(value, str | int | float | None) or isinstance(value, bool):
            raise ValueError
        if value is not None and kind is int and int(value) != float(value):
            raise ValueError
        return None if value is None else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{name or described.name} in {called} is {shown}, and must be a number."
        ) from None
