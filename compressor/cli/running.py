"""A command from its arguments to its exit code: every failure is a sentence on stderr."""

import os
import signal
import sys

import typer

from compressor.cli.arguments import spread_ratios
from compressor.cli.lost_pages import end_with_a_sentence
from compressor.errors import as_error
from compressor.job.console import console
from compressor.job.interruption import SIGNALS, Interrupted, asked, ending, interruptible

HELP = {"help_option_names": ["-h", "--help"]}
INTERRUPTED = 130  # the exit code
DEBUG = "COMPRESSOR_DEBUG"  # set to 1, errors show tracebacks


def run(app: typer.Typer, arguments: list[str]) -> int:
    """The exit code; every failure is a sentence on stderr."""
    with interruptible():
        try:
            return app(args=spread_ratios(arguments), standalone_mode=True) or 0
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else 2
        except BaseException as error:  # what Rust calls a panic is no Exception
            if isinstance(error, Interrupted) or asked():
                ending()
                where = getattr(error, "where", "")
                kept = getattr(error, "kept", "Nothing was kept.")
                say(app, f"interrupted{where and f' in {where}'}.", kept)
                return INTERRUPTED
            known, kept = as_error(error), getattr(error, "kept", "")
            if known is None or os.environ.get(DEBUG) == "1":
                if kept:
                    say(app, kept)
                raise
            say(app, str(known), kept)
            return known.exit_code


def say(app: typer.Typer, *sentences: str) -> None:
    """Why the command ends, on stderr."""
    text = " ".join(filter(None, sentences))
    console(stderr=True).print(f"{app.info.name}: {text}", style="red")


def main(app: typer.Typer) -> None:
    """An app, to the end of the process."""
    end_with_a_sentence()
    code = run(app, sys.argv[1:])
    for number in SIGNALS:  # what comes now would only tear what ends anyway
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
