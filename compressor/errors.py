"""The failures a user can act on. Each is one sentence and carries the exit code of `compress`."""

import errno
import re
from collections.abc import Iterator, Sequence

BUG, INTERRUPTED = 1, 130  # exit codes; those of `CompressorError`s are theirs
# How safetensors, which raises errors of its own, says what the system did: a full disk, a device that
# fails.
OF_THE_SYSTEM = re.compile(r"\(os error \d+\)")
# The last is Python's own, of a call in whose depth a MemoryError was lost.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|bad_alloc|can't start new thread"
    "|failed to map segment|ThreadPoolBuildError|returned NULL without setting an exception"
)
# How the system says that it is not the file's fault, nor the user's.
FAILURES = {
    getattr(errno, name) for name in ("EIO", "ENOSPC", "ENOMEM", "EMFILE", "ENFILE", "EROFS")
}
# What `json` raises for what is no JSON, is nested too deeply, or has too long a number.
NOT_JSON = (ValueError, RecursionError)
LONGEST = 4000  # characters of a message: names and values of a stranger's files may be endless
LEFT_OUT = " ... "
# What terminals may obey, or not print.
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


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


def failed(error: BaseException) -> bool:
    """Whether it was the machine that failed."""
    by_number = isinstance(error, OSError) and error.errno in FAILURES
    said = str(error)
    no_words = isinstance(error, MemoryError | MachineError)
    return bool(by_number or no_words or OF_THE_SYSTEM.search(said) or NO_MEMORY.search(said))


def behind(error: BaseException) -> Iterator[BaseException]:
    """What an error was raised from, and that from, down to the first one."""
    while error := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        yield error


def as_error(error: BaseException) -> CompressorError | None:
    """A failure of the machine in our words; None for what is a bug."""
    said = str(error)
    if isinstance(error, CompressorError):
        # What could not be read, because a disk failed, is not wrong in itself.
        return MachineError(said) if any(map(failed, behind(error))) else error
    if isinstance(error, MemoryError) or NO_MEMORY.search(said):
        said = said.partition(". If ")[0] or "no more could be had"  # more is for programmers
        return MachineError(f"Memory ran out: {said}. Use fewer --samples or a shorter --length.")
    if isinstance(error, OSError) or OF_THE_SYSTEM.search(said):
        return MachineError(f"The system refused: {said}.")
    if "CUDA error" in said:
        said = said.partition("\n")[0]
        return MachineError(f"The GPU failed: {said}. What it had in memory is lost.")
    return None


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error, and no signal."""
    known = as_error(error)
    return known.exit_code if known else BUG


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
