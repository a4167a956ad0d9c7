"""Where a command works, what it has done already, and whom it tells."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.job.journal import Journal
from compressor.job.keeping import keeping, open_work
from compressor.job.progress import Lines, Meter
from compressor.job.shelf import EMPTY, Shelf
from compressor.model.ranks import ALONE, Alone
from compressor.writing.locking import locked

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """partial: the unfinished result beside DEST; work: the folder of what is kept until the end; shelf:
    what other results of a sweep have found out; ranks: of which this is the first.
    """

    partial: Path
    work: Path
    journal: Journal
    meter: Meter
    lines: Lines
    shelf: Shelf = EMPTY
    ranks: Alone = ALONE

    @contextmanager
    def stage(self, name: str, kept: int = 0, shown: str | None = None) -> Iterator[Progress]:
        """Time a stage and tell how far it is; what it gives is to be told how much is done, and of how
        much. kept: how much is known from an interrupted run; shown: its name for the user.
        """
        with self.meter.stage(name), self.lines.stage(shown or name, kept) as progress:
            yield progress


def partial_of(dest: Path) -> Path:
    return dest.with_name(dest.name + ".partial")


@contextmanager
def open_run(
    dest: Path,
    runtime: Runtime,
    lines: Lines,
    results: Sequence[str] = (),
    shelf: Shelf = EMPTY,
    ranks: Alone = ALONE,
) -> Iterator[Run]:
    """A run that makes `dest`, or goes on with an interrupted one; the only one that does.

    When it breaks off, its exception says what is kept; `partial` is among that if one of the `results`
    is in the journal.
    """
    with locked(dest):
        work, journal = open_work(dest, runtime)
        partial = partial_of(dest)
        if not runtime.resume:
            shutil.rmtree(partial, ignore_errors=True)

        def finished() -> bool:
            return any(journal.get(name) for name in results)

        with Meter() as meter, keeping(work, lines, partial, finished):
            yield Run(partial, work, journal, meter, lines, shelf, ranks)
