"""A command from its arguments to its exit code: every failure is a sentence on stderr.

    0    done, and verified
    1    a bug of this program
    2    a folder, a file or an option that cannot be used as it is
    3    the result is worse than allowed; it is kept as DEST.rejected
    4    disk, memory or device do not suffice
    5    what was written does not load, or does not compute what it should
    130  interrupted; what is done is kept

With `--json` stdout holds one JSON document, whatever happens: the results, or

    {"error": {"sentence": "...", "exit_code": 2, "kept": null}}

where `kept` says what of the work was kept, if any was. Beside it are the `results` of a run that
ended with 3. With `--debug` the traceback comes before the sentence.
"""

import json
import mmap
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass

import typer

from compressor.cli.arguments import spread_ratios
from compressor.cli.flags import DEBUG, JSON
from compressor.cli.lost_pages import end_with_a_sentence
from compressor.errors import BUG, INTERRUPTED, InputError, as_error, in_a_line
from compressor.job.console import console
from compressor.job.interruption import SIGNALS, Interrupted, asked, ending, interruptible

HELP = {"help_option_names": ["-h", "--help"]}
# Given back where a command fails, so that there is room to say why: also that memory ran out.
SPARE = mmap.mmap(-1, 16 << 20)


@dataclass(frozen=True)
class Failure:
    """Why a command ends, its exit code, what is kept, and the results that there are all the same."""

    sentence: str
    exit_code: int
    kept: str = ""
    results: tuple = ()

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        kept = getattr(error, "kept", "")
        if hasattr(error, "format_message"):  # of the parser, in any version of it
            code = getattr(error, "exit_code", InputError.exit_code)
            return cls(f"{error.format_message().rstrip('.')}.", code)
        known = as_error(error)
        if known is None:
            said = (
                f"this is a bug of the program, {type(error).__name__}: {in_a_line(error)} Run the same "
                f"again with {DEBUG}, and report what that shows."
            )
            return cls(said, BUG, kept)
        results = tuple(result.told() for result in getattr(known, "results", ()))
        return cls(str(known), known.exit_code, kept, results)

    @classmethod
    def of_signal(cls, error: BaseException) -> "Failure":
        """Of what a signal made of a job, which a library may have made another error of."""
        where = getattr(error, "where", "")
        said = f"interrupted{where and f' in {where}'}."
        return cls(said, INTERRUPTED, getattr(error, "kept", "") or "Nothing was kept.")

    def as_json(self) -> str:
        told = {"sentence": self.sentence, "exit_code": self.exit_code, "kept": self.kept or None}
        beside = {"results": self.results} if self.results else {}
        return json.dumps({"error": told} | beside, indent=1)


def run(app: typer.Typer, arguments: list[str]) -> int:
    """The exit code; every failure is a sentence on stderr, and with `--json` an object on stdout."""
    as_json, debug = JSON in arguments, DEBUG in arguments
    with interruptible():
        try:
            code = app(args=spread_ratios(arguments), standalone_mode=not as_json) or 0
            sys.stdout.flush()  # here, where a full disk is told
            return code
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else 2
        except BaseException as error:  # what Rust calls a panic is no Exception
            SPARE.close()
            if stopped := isinstance(error, Interrupted) or asked():
                ending()
            failure = Failure.of_signal(error) if stopped else Failure.of(error)
            if debug:
                traceback.print_exception(error)
            say(app, failure.sentence, failure.kept)
            if as_json:
                with suppress(OSError):  # said on stderr, too
                    print(failure.as_json(), flush=True)
            return failure.exit_code


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
