"""What a run tells while it goes on: where it is, how long each stage took, the memory it needed."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psutil
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compressor.calibration import TokenSet, describe
from compressor.console import console

SECONDS = 60  # between two lines of a stage


class Meter:
    """Seconds of each stage and the peak resident memory of this process and its children."""

    def __init__(self, interval: float = 0.05):
        self.seconds: dict[str, float] = {}
        self.peak_rss = 0
        self._nested = 0.0
        self._interval, self._done = interval, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(self._interval):
            total = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    total += member.memory_info().rss
                except psutil.Error:  # a child that ended between the two calls
                    continue
            self.peak_rss = max(self.peak_rss, total)

    @contextmanager
    def stage(self, name: str):
        """Time a stage; one inside another counts for itself and not for the outer one."""
        begun, before, self._nested = time.monotonic(), self._nested, 0.0
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            own = spent - self._nested
            self.seconds[name] = round(self.seconds.get(name, 0) + own, 3)
            self._nested = before + spent

    def timed(self, name: str, items: Iterable) -> Iterator:
        """The items, the time they take to come being a stage's."""
        source = iter(items)
        while True:
            with self.stage(name):
                item = next(source, None)
            if item is None:
                return
            yield item


class Lines:
    """Where a run is, on stderr.

    On a terminal a bar a stage, with the time left; elsewhere a line when a stage is done, and one a
    minute meanwhile.
    """

    def __init__(self, quiet: bool):
        self.console = console(stderr=True)
        self.console.quiet = quiet

    def fact(self, label: str, text: str) -> None:
        self.console.print(f"{label:<12} {text}")

    def texts(self, **tokens: TokenSet | None) -> None:
        """What each text is, by its label."""
        for label, some in tokens.items():
            if some is not None:
                self.fact(label, describe(some.protocol))

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """What it gives is to be told how much is done, and of how much."""
        with (self.bar if self.console.is_terminal else self.lines)(name) as progress:
            yield progress

    @contextmanager
    def bar(self, name: str):
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self.console, transient=False) as progress:
            task = progress.add_task(name, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextmanager
    def lines(self, name: str):
        begun = told = time.monotonic()
        at = ""

        def progress(done: int, total: int) -> None:
            nonlocal at, told
            at = f"{done}/{total}, "
            if time.monotonic() - told >= SECONDS:
                told = time.monotonic()
                self.fact(name, f"{at}{told - begun:.0f} s")

        yield progress
        self.fact(name, f"{at}{time.monotonic() - begun:.1f} s, done")
