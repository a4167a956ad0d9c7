"""What reading hostile input may come to: success or a sentence, within a second and a gigabyte.

The second is of processor time, so that a busy machine changes nothing. The gigabyte is a limit on the
address space beyond what the process has already, so that what would take more fails at once.
"""

import re
import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import CompressorError

SECONDS = 1.0  # of processor time
WAITING = 60.0  # of the clock: where nothing is computed, it waits for what never comes
BYTES = 1 << 30
LONGEST = 4000  # characters of a sentence
EXIT_CODES = (2, 4)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal may obey


class Broken(AssertionError):
    """A reader that did something else."""


class Hung(BaseException):
    """It took too long. No Exception, which readers turn into sentences."""


@contextmanager
def limits():
    """While open, a second and a gigabyte are all there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    former = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (most, former[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, former)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def stop(*_) -> None:
    raise Hung


def outcome(read: Callable, *given) -> CompressorError | None:
    """The sentence that a reader refuses its input with; None where it takes it. `Broken` otherwise."""
    try:
        with limits():
            read(*given)
    except CompressorError as error:
        check_sentence(error)
        return error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # PanicException of a library in Rust is no Exception
        raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
    return None


def check_sentence(error: CompressorError) -> None:
    text = str(error)
    if error.exit_code not in EXIT_CODES:
        raise Broken(f"exit code {error.exit_code}: {text[:300]}") from error
    if not text.strip() or len(text) > LONGEST or CONTROLS.search(text):
        raise Broken(f"no sentence ({len(text)} characters): {text[:300]!r}") from error
