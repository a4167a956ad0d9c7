"""Work of the host beside the computation: a block is hashed and written while the next is computed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_thread() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread, all of whose work is done where this ends, also if a signal comes meanwhile.

    The pool's own end joins its thread, and a thread whose join was interrupted is over for Python
    before 3.13: the process would end while that thread still writes, and abort.
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        last = pool.submit(int)  # its turn comes when all else is done
        try:
            wait([last])
        finally:
            wait([last])
            pool.shutdown(wait=False)


class Beside:
    """One thread that does one piece of work after the other, while its caller goes on.

    `do` waits for the piece before: at most one block is held besides the present one. What fails is
    raised by the next `do`, or where the `with` ends, which waits for the last piece, also where an
    exception ends it.
    """

    def __enter__(self) -> "Beside":
        self.opened = one_thread()
        self.pool = self.opened.__enter__()
        self.under_way: Future | None = None
        return self

    def do(self, work: Callable[..., Any], *given: Any) -> None:
        """work(*given), soon."""
        self.wait()
        self.under_way = self.pool.submit(work, *given)

    def wait(self) -> None:
        """Until nothing is left to do."""
        begun, self.under_way = self.under_way, None
        if begun is not None:
            begun.result()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.opened.__exit__(None, None, None)
        if kind is None:
            self.wait()
