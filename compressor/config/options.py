"""Options as data: each field of a config has its flag, its help, what it may be and how it is written.

A flag that begins with `--` is one of the command line, too; any other is a name in Python alone.
`compressor.cli.arguments.offers` gives a command the flags of a config.
"""

from collections.abc import Callable, Iterator
from dataclasses import Field, field, fields
from types import UnionType
from typing import Any, get_args, get_origin

from compressor.errors import InputError

# What a value of a kind is called, and what may stand for one.
KINDS: dict[type, tuple[str, Any]] = {
    int: ("a whole number", int),
    float: ("a number", int | float),
    str: ("a string", str),
    bool: ("true or false", bool),
}
Fits = tuple[str, Callable[[Any], bool]]  # what a value must be: in words, and as a test


def option(
    default,
    flag: str,
    help: str,
    fits: Fits = ("", lambda x: True),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field. parse: makes its value of what is written on a command line, if that is not the value."""
    about = {"flag": flag, "help": help, "fits": fits, "parse": parse}
    return field(default=default, metadata=about)


def options_of(config) -> Iterator[Field]:
    """The fields of a config, or of its class, that are options."""
    return (each for each in fields(config) if "flag" in each.metadata)


def name_of(described: Field) -> str:
    """An option's name in Python: `keep_blocks` of `--keep-blocks`."""
    return described.metadata["flag"].removeprefix("--").replace("-", "_")


def one_of(*values: str) -> Fits:
    return f"{', '.join(values[:-1])} or {values[-1]}", lambda x: x in values


def at_least(least: int) -> Fits:
    return f"at least {least}", lambda x: x >= least


def parsed(described: Field, value):
    """An option's value of what a caller sets it to, which may be as it is written."""
    parse = described.metadata["parse"]
    if parse and isinstance(value, str):
        return parse(value)
    kind = kind_of(described)
    if value is None or kind not in KINDS:
        return value
    wanted, accepted = KINDS[kind]
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{described.metadata['flag']} must be {wanted}, not {value!r}.")
    return value


def kind_of(described: Field) -> Any:
    """The type of an option's values, besides None."""
    optional = get_origin(described.type) is UnionType
    return get_args(described.type)[0] if optional else described.type


def check_values(config) -> None:
    """InputError, by the option's name, for a value that is set (not None) and does not fit."""
    for each in options_of(config):
        value, (wanted, fits) = getattr(config, each.name), each.metadata["fits"]
        if value is not None and not fits(value):
            raise InputError(f"{each.metadata['flag']} must be {wanted}, not {value!r}.")


def given_options(config) -> list[str]:
    """The flags of what differs from its default."""
    return [
        each.metadata["flag"]
        for each in options_of(config)
        if getattr(config, each.name) != each.default
    ]
