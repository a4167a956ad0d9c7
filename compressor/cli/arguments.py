"""Options of commands, made of the configs' fields; ratios as people write them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.cli.flags import OUTPUT, Debug
from compressor.config.options import name_of, options_of
from compressor.errors import InputError
from compressor.scoring.methods import DEFAULT_METHOD, METHODS

RATIOS = ("--keep", "--keep-blocks")
# Of all scoring methods, as a help text lists them.
LISTED = ", ".join(f"{name} (default)" if name == DEFAULT_METHOD else name for name in METHODS)


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


Panels = Mapping[str, Mapping[type, tuple[str, ...]]]


def offers(panels: Panels, **retyped: tuple[Any, ...]) -> Callable:
    """Give a command options of configs, by their names in Python and under the title of a panel.

    The command gets one dictionary, `options`, by these names, of those that differ from their defaults.
    retyped: another type and default of an option in this command, and words for the default.
    """

    def changed(command: Callable) -> Callable:
        added = [
            parameter(each, panel, *retyped.get(name_of(each), ()))
            for panel, configs in panels.items()
            for config, names in configs.items()
            for each in options_of(config)
            if name_of(each) in names
        ]

        def called(**values):
            options = {p.name: values.pop(p.name) for p in added}
            defaults = {p.name: p.default for p in added}
            chosen = {n: v for n, v in options.items() if v != defaults[n] or n in retyped}
            return command(**values, options=chosen)

        kept = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command).parameters.values()
            if p.name != "options"
        ]
        every = sorted([*kept, *added], key=lambda p: place(panel_of(p), [*panels]))
        return with_parameters(called, command, every)

    return changed


def debuggable(command: Callable) -> Callable:
    """Give a command `--debug`, which is read where failures are told, before anything is parsed."""

    def called(debug: bool = False, **values):
        return command(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.Parameter("debug", keyword, default=False, annotation=Debug)
    return with_parameters(called, command, [*inspect.signature(command).parameters.values(), own])


def with_parameters(called: Callable, command: Callable, every: list) -> Callable:
    """`called` by the name of a command, and with these parameters."""
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # as inspect reads it
    called.__annotations__ = {p.name: p.annotation for p in every}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def parameter(described: Field, panel: str, *retyped) -> inspect.Parameter:
    """An option's parameter of a command. One that is parsed is text, and None is its default."""
    about = described.metadata
    kind, default, said = described.type, described.default, True
    if about["parse"]:
        kind, default = str | None, None
    if retyped:
        kind, default, said = retyped
    flag = about["flag"]
    flags = f"{flag}/--no-{flag.removeprefix('--')}" if default is True else flag
    shown = about["help"].format(methods=LISTED)
    option = typer.Option(flags, help=shown, rich_help_panel=panel, show_default=said)
    keyword = inspect.Parameter.KEYWORD_ONLY
    name = name_of(described)
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, option])


def panel_of(described: inspect.Parameter) -> str | None:
    """The title of the panel that a parameter is shown in, if it has one."""
    about = getattr(described.annotation, "__metadata__", (None,))[0]
    return getattr(about, "rich_help_panel", None)


def place(panel: str | None, panels: list[str]) -> int:
    """Panels as a command names them; one that it does not name comes before them, or last."""
    if panel in panels:
        return panels.index(panel)
    return len(panels) if panel == OUTPUT else -1


def check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.absolute().parent} to write {out.name} to.")
