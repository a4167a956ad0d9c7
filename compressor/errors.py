"""The failures a user can act on. Each is one sentence and carries the exit code of `compress`."""

import re
from collections.abc import Sequence

# What `json` raises for what is no JSON, is nested too deeply, or has too long a number.
NOT_JSON = (ValueError, RecursionError)
LONGEST = 4000  # characters of a message: names and values of a stranger's files may be endless
LEFT_OUT = " ... "
UNSHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)  # terminals may obey, or not print


class CompressorError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 2

    def __init__(self, message: str = ""):
        super().__init__(fit_to_show(message))


class InputError(CompressorError):
    """A file, a folder or an option that cannot be used as it is."""


class MendableError(InputError):
    """A fault of a folder that `compressor doctor` mends, where it is clear what is meant.

    `said` is the message without the hint at that.
    """

    def __init__(self, message: str, folder: object):
        super().__init__(
            f"{message} Where it is clear what is meant, `compressor doctor {folder} --out FIXED` mends "
            "this."
        )
        self.said = message


class DamagedError(InputError):
    """The source has to be another one: what was found out of this one is worth nothing."""


class QualityError(CompressorError):
    """The result works but is worse than the user allowed; it is kept as DEST.rejected.

    results: what the run gave all the same, this one among them.
    """

    exit_code = 3

    def __init__(self, message: str, results: Sequence[object] | None = None):
        super().__init__(message)
        self.results = results or []


class MachineError(CompressorError):
    """Disk, memory or device do not suffice."""

    exit_code = 4


class VerificationError(CompressorError):
    """The written checkpoint does not load, or does not compute what it should."""

    exit_code = 5


def fit_to_show(message: str) -> str:
    """A message of which parts may be a stranger's: no control characters, and not endless."""
    text = UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], str(message))
    if len(text) <= LONGEST:
        return text
    kept = (LONGEST - len(LEFT_OUT)) // 2
    return text[:kept] + LEFT_OUT + text[-kept:]


def in_a_line(error: BaseException) -> str:
    """An exception's own message as one sentence, without that of the validation around it."""
    while type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"it lacks {text}" if isinstance(error, KeyError) else text
    return text if text.endswith((".", "!", "?")) else text + "."
