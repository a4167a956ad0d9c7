"""Work of the host beside the computation: a block is hashed and written while the next is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Beside:
    """One thread that does one piece of work after the other, while its caller goes on.

    `do` waits for the piece before: at most one block is held besides the present one. What fails is
    raised by the next `do`, or where the `with` ends, which waits for the last piece, also where an
    exception ends it.
    """

    def __enter__(self) -> "Beside":
        self.pool = ThreadPoolExecutor(1)
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
        self.pool.shutdown()
        if kind is None:
            self.wait()
