"""Options that belong together as a dataclass: each field has its flag, its help and what it may be.

`compressor.arguments.takes` gives a command such a dataclass.
"""

from collections.abc import Callable
from dataclasses import Field, field
from typing import Any

from compressor.errors import InputError

Fits = tuple[str, Callable[[Any], bool]]  # what a value must be: in words, and as a test


def option(default, flag: str, help: str, fits: Fits = ("", lambda x: True)) -> Any:
    return field(default=default, metadata={"flag": flag, "help": help, "fits": fits})


def one_of(*values: str) -> Fits:
    return f"{', '.join(values[:-1])} or {values[-1]}", lambda x: x in values


def check_value(described: Field, value) -> None:
    """InputError, by the option's name, for a value that is given (not None) and does not fit."""
    wanted, fits = described.metadata["fits"]
    if value is not None and not fits(value):
        raise InputError(f"{described.metadata['flag']} must be {wanted}, not {value!r}.")
