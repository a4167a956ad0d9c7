"""Amounts, ratios and block numbers as people write them on a command line; groups of options."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from compressor.errors import InputError

RATIOS = ("--keep", "--keep-blocks")


def parse_blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"--protect takes block numbers such as 0,1,-1, not {text!r}.") from None


def parse_ratio(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--max-perplexity-ratio is a number or off, not {text!r}.") from None


def spread_ratios(arguments: list[str]) -> list[str]:
    """`--keep 0.9 0.8` as `--keep 0.9 --keep 0.8`, which is what the parser reads."""
    spread: list[str] = []
    option = None
    for argument in arguments:
        if argument.startswith("--"):
            option = argument if argument in RATIOS else None
        elif option and spread[-1] != option:
            try:
                float(argument)
                spread.append(option)
            except ValueError:
                option = None
        spread.append(argument)
    return spread


def takes(name: str, group: type, panel: str, **defaults) -> Callable:
    """Give a command the fields of a dataclass as options; it gets them as one value, `name`.

    A field's metadata has its `flag` and its `help`; `defaults` are this command's own.
    """

    def changed(command: Callable) -> Callable:
        def called(**given):
            values = {f.name: given.pop(f"{name}_{f.name}") for f in fields(group)}
            return command(**given, **{name: group(**values)})

        own = inspect.signature(command).parameters.values()
        added = [
            inspect.Parameter(
                f"{name}_{f.name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(f.name, f.default),
                annotation=Annotated[
                    f.type,
                    typer.Option(
                        f.metadata["flag"], help=f.metadata["help"], rich_help_panel=panel
                    ),
                ],
            )
            for f in fields(group)
        ]
        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != name]
        called.__signature__ = inspect.Signature([*kept, *added])
        called.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return changed


def check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.absolute().parent} to write {out.name} to.")
