"""Ctrl-C and SIGTERM: they end a command in order, wherever it is."""

import signal
import threading
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the command to end.

    No KeyboardInterrupt, with which the command line's library would exit before anything is said.
    """


class _State:
    asked = False  # a signal came
    ending = False  # what is left to do takes a moment, and is done
    late = False  # a signal came meanwhile


@contextmanager
def interruptible():
    """While open, signals raise `Interrupted` in the main thread.

    SIGINT too where the parent had it ignored, as shells do of what they run in the background. A
    thread that is not the main one cannot do this, and leaves all as it is.
    """
    _State.asked = _State.ending = _State.late = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _handle(*_) -> None:
    _State.late = _State.ending
    if not _State.ending:
        _State.asked = True
        raise Interrupted


def check() -> None:
    """Raise what a signal asked for, should it have come where exceptions are lost (in a `__del__`)."""
    if _State.asked and not _State.ending:
        raise Interrupted


def asked() -> bool:
    """Whether a signal has come: what breaks off then does so because of it, whatever a library that it
    came in has made of the exception.
    """
    return _State.asked


def answered() -> None:
    """The signal came because of something else, which is said instead."""
    _State.asked = False


def ending() -> None:
    """From here on signals change nothing: what is left to do takes a moment and must not be torn."""
    _State.ending = True


def going_on() -> None:
    """What was ending is over, and another job of the same command begins: signals count again, and one
    that came meanwhile does now.
    """
    _State.ending = False
    if _State.late:
        _handle()
