"""What a run tells while it goes on: where it is, how long each stage took, the memory it needed."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from compressor.job.console import console
from compressor.job.interruption import check
from compressor.job.schedule import Schedule, words
from compressor.text.tokens import TokenSet, describe

if TYPE_CHECKING:  # it imports much more
    from compressor.job.forecast import Forecast

SECONDS = 60  # between two lines of a stage
UNITS = {
    **{"recover": "step", "compare": "plan", "verify": "part", "generate": "token"},
    **{"answer": "choice", "continue": "model"},
}


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
            alone = spent - self._nested
            self.seconds[name] = round(self.seconds.get(name, 0) + alone, 3)
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

    On a terminal a bar a stage; elsewhere a line when a stage is done, and one a minute meanwhile,
    whether anything was finished in it or not. Both with the time left of the whole job, as far as
    that is known (`forecast`).
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic):
        self.console = console(stderr=True)
        self.console.quiet = quiet
        self.clock, self.begun = clock, clock()
        self.schedule = Schedule((), clock)
        self.result, self.count = "", ""
        self.where = ""  # the stage that goes on or broke off, and after which block

    def fact(self, label: str, text: str) -> None:
        self.console.print(f"{label:<12} {text}")

    def texts(self, **tokens: TokenSet | None) -> None:
        """What each text is, by its label."""
        for label, some in tokens.items():
            if some is not None:
                self.fact(label, describe(some.protocol))

    def forecast(self, foreseen: "Forecast") -> None:
        """What the job will take (a `Forecast`), by which the time left is told."""
        self.fact("forecast", str(foreseen))
        self.schedule = Schedule(foreseen.parts, self.clock)

    def each(self, wanted: Sequence) -> Iterator:
        """Results one after the other, by their `name`: meanwhile stages are those of one of them."""
        for number, result in enumerate(wanted, 1):
            self.result = result.name
            self.count = f"{number} of {len(wanted)}" if len(wanted) > 1 else ""
            yield result
        self.result = self.count = ""

    @contextmanager
    def stage(self, name: str, kept: int = 0) -> Iterator[Callable[[int, int], None]]:
        """What it gives is to be told how much is done, and of how much.

        kept: how much of that is known from an interrupted job.
        """
        title = f"{name} {self.result}, {self.count}" if self.count else name
        self.where = f"{name} of {self.result}" if self.count else name
        place, unit = self.where, UNITS.get(name, "block")
        self.schedule.begin(name, self.result, kept)
        with (self.bar if self.console.is_terminal else self.lines)(title) as show:

            def progress(done: int, total: int) -> None:
                check()
                self.schedule.advance(done, total)
                self.where = f"{place}, after {unit} {done} of {total}" if done else place
                show(done, total)

            yield progress
        self.schedule.end()
        self.where = ""

    @contextmanager
    def bar(self, title: str):
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            LeftColumn(self.left),
        )
        with Progress(*columns, console=self.console, transient=False) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextmanager
    def lines(self, title: str):
        begun, at = self.clock(), ""

        def show(done: int, total: int) -> None:
            nonlocal at
            at = f"{done}/{total}, "

        def tell() -> None:
            here, whole = self.clock() - begun, self.clock() - self.begun
            self.fact(title, f"{at}{words(here)}; {words(whole)} in all{self.left(', ')}")

        with every(SECONDS, tell):
            yield show
        self.fact(title, f"{at}{self.clock() - begun:.1f} s, done")

    def left(self, before: str = "") -> str:
        """The time left of the job in words, behind `before`; nothing where it is unknown."""
        seconds = self.schedule.left
        if seconds is None or not self.schedule.whole:
            return ""
        unknown = self.schedule.unknown
        more = f" without {', '.join(unknown)}" if unknown else ""
        return f"{before}about {words(seconds)} left{more}"


class LeftColumn(ProgressColumn):
    """The time left of the whole job; rich's own column forgets that of steps over half a minute."""

    def __init__(self, left: Callable[[], str]):
        super().__init__()
        self.left = left

    def render(self, task) -> Text:
        return Text(self.left(), style="progress.remaining")


@contextmanager
def every(seconds: float, tell: Callable[[], None]) -> Iterator[None]:
    """While open, `tell` is called every so many seconds, by a thread of its own."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
