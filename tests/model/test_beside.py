"""Work beside the computation: in order, one piece ahead, and what fails is told."""

import signal
import threading
import time

import pytest

from compressor.model.beside import Beside


def test_pieces_come_in_order_and_one_ahead():
    """The caller goes on while a piece is done, but not past the next one."""
    done, gate, begun = [], threading.Event(), []
    with Beside() as beside:
        beside.do(lambda: gate.wait(10) and done.append(0))
        begun.append(list(done))  # the first piece waits for the caller, who goes on
        gate.set()
        beside.do(done.append, 1)
        begun.append(0 in done)  # the second began when the first was done
        beside.do(done.append, 2)
    assert begun == [[], True] and done == [0, 1, 2]


def fail(what: str) -> None:
    raise OSError(what)


@pytest.mark.parametrize("more", [0, 1])
def test_what_fails_is_raised_by_the_next_or_at_the_end(more):
    done = []
    with pytest.raises(OSError, match="no space"), Beside() as beside:
        beside.do(fail, "no space")
        for _ in range(more):
            beside.do(done.append, 1)
            done.append("never")
    assert done == []


def test_the_callers_own_failure_comes_first_and_the_last_piece_is_done():
    done = []
    with pytest.raises(ValueError, match="of the caller"), Beside() as beside:
        beside.do(done.append, "whole")
        raise ValueError("of the caller")
    assert done == ["whole"]


def test_a_signal_while_the_last_piece_is_waited_for_does_not_leave_it_behind():
    """Python before 3.13 takes a thread whose join was interrupted for one that has ended."""
    done, ends = [], (lambda: time.sleep(0.3), lambda: done.append("whole"))

    class Signal(BaseException):
        pass

    def arrived(*_):
        raise Signal

    before = signal.signal(signal.SIGALRM, arrived)
    try:
        with pytest.raises(Signal), Beside() as beside:
            beside.do(lambda: [end() for end in ends])
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert done == ["whole"]
    finally:
        signal.signal(signal.SIGALRM, before)
