"""Bars of other libraries: a run has lines of its own, and these would be drawn across them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from tqdm import tqdm


@contextmanager
def without_bars() -> Iterator[None]:
    """While open, no library draws a bar by tqdm, also where it has no setting for that."""
    begin = tqdm.__init__

    def unseen(self, *arguments, **options) -> None:
        begin(self, *arguments, **options | {"disable": True})

    with patch.object(tqdm, "__init__", unseen):
        yield
