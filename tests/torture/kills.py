"""A job that is killed again and again, and what is held against it after each time."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.cases import Case
from torture.forked import Ended, counting, orphans, run, start, wait
from torture.record import Tally
from torture.trees import Tree, beside, bytes_lost, tree, whole

from compressor.job import result

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
AGAIN = 0.75  # how likely a job that goes on is killed once more
MOST = 5  # kills of one job
LEAST = 20  # file operations of a job that goes on
BY_OPERATION = 0.7  # how likely one is killed before a file operation that is drawn, not at a time
INTERRUPTED, REFUSED = 130, 2
RESUME, ANEW, NOTHING = "add --resume", "leave out --resume", "Nothing was kept"


class Broken(Exception):
    """Something that must never be."""


@dataclass(frozen=True)
class Torture:
    """One case: its uninterrupted result and how long that took, and the sources' hashes."""

    case: Case
    places: dict[str, Path]
    root: Path
    sources: dict[str, Tree]
    whole: Ended
    reference: Path
    draws: Callable[[], None]

    @classmethod
    def of(cls, case: Case, places: dict[str, Path], root: Path) -> "Torture":
        """Run the case to its end first."""
        folder = root / "whole"
        folder.mkdir(parents=True)
        dest = folder / "out"
        arguments = case.filled(places, dest)
        draws = draw_it if case.drawn else draw_nothing
        ended = run(arguments, root / "said", counting(folder, before=draws))
        if ended.code or beside(dest) or orphans():
            raise Broken(f"uninterrupted, it ends with {ended.code}: {ended.in_a_line[-500:]}")
        places = {name: path for name, path in places.items() if name in case.uses}
        sources = {name: tree(path) for name, path in places.items()}
        return cls(case, places, root, sources, ended, dest, draws)

    def chain(self, seed: int, tally: Tally) -> None:
        """One job, killed at random moments and resumed until it is done."""
        draw = random.Random(f"{self.case.name} {seed}")
        folder = self.root / f"{seed}"
        folder.mkdir()
        dest, options, kills = folder / "out", [], 0
        ahead = self.whole.operations
        former = make_former(dest) if self.case.former else None
        while True:
            last = kills == MOST or (kills > 0 and draw.random() > AGAIN)
            ended = self.once(dest, options, ahead, None if last else draw, tally)
            self.check(dest, former, ended)
            kills += killed(ended)
            ahead = max(ahead - ended.operations // 2, LEAST)
            if ended.code == 0 or (dest.exists() and tree(dest) != former):
                break
            options = self.next_options(ended, options)
        lost = bytes_lost(dest, self.reference)
        tally.bytes_lost += lost
        if lost or tree(dest) != tree(self.reference):
            raise Broken("the result differs from that of an uninterrupted job")
        if ended.code == 0 and beside(dest):
            raise Broken(f"it is done and leaves {beside(dest)}")
        tally.finished += 1
        shutil.rmtree(folder)

    def once(
        self, dest: Path, options: list[str], ahead: int, draw: random.Random | None, tally: Tally
    ) -> Ended:
        """The job, killed at a moment that is drawn, or to its end. ahead: how many file operations it
        may still take.
        """
        arguments, out = [*self.case.filled(self.places, dest), *options], self.root / "said"
        if draw is None:
            return run(arguments, out, self.draws)
        number = draw.choice(SIGNALS)
        if draw.random() < BY_OPERATION:
            at = draw.randrange(ahead)
            ended = run(arguments, out, counting(dest.parent, at, number, self.draws))
        else:
            begun = time.monotonic()
            pid = start(arguments, out, self.draws)
            time.sleep(draw.uniform(0, self.whole.seconds))
            os.kill(
                pid, number
            )  # of one that has ended, nobody has asked yet: the number is its own
            ended = wait(pid, out, begun)
        if killed(ended):
            tally.kills[number.name] += 1
            tally.stages[ended.stage] += 1
        elif ended.code == 0:
            tally.too_late += 1
        return ended

    def check(self, dest: Path, former: Tree | None, ended: Ended) -> None:
        """What holds whenever no job runs."""
        if left := orphans():
            raise Broken(f"in {ended.stage}, it left {len(left)} processes behind")
        if "Traceback" in ended.said:
            raise Broken(f"in {ended.stage}, it ended with a traceback: {ended.said[-3000:]}")
        if ended.code == INTERRUPTED and not (
            RESUME in ended.in_a_line or NOTHING in ended.in_a_line
        ):
            raise Broken(
                f"in {ended.stage}, it does not say how to go on: {ended.in_a_line[-300:]}"
            )
        if ended.code and not killed(ended) and not refused(ended):
            raise Broken(f"in {ended.stage}, exit code {ended.code}: {ended.in_a_line[-500:]}")
        if wrong := whole(dest, self.reference, former):
            raise Broken(f"after a kill in {ended.stage}, {wrong}")
        for name, path in self.places.items():
            if tree(path) != self.sources[name]:
                raise Broken(f"after a kill in {ended.stage}, {name} is no longer what it was")

    def next_options(self, ended: Ended, options: list[str]) -> list[str]:
        """How the job goes on, as far as users are told: what an interrupted one said, or what the next
        one says after one that was killed.
        """
        if ended.code in (INTERRUPTED, REFUSED):
            return ["--resume"] if RESUME in ended.in_a_line else []
        return ["--resume"] if self.case.former else []  # --overwrite alone begins anew


def draw_it() -> None:
    """Nothing in the place of the picture."""


def draw_nothing() -> None:
    """A line in the place of the picture."""
    result.draw = lambda file, *_: file.write_text("no picture")


def killed(ended: Ended) -> bool:
    return ended.code < 0 or ended.code == INTERRUPTED


def refused(ended: Ended) -> bool:
    """Whether a job was told what one before it has left."""
    return ended.code == REFUSED and (RESUME in ended.in_a_line or ANEW in ended.in_a_line)


def make_former(dest: Path) -> Tree:
    """Another result, which stands at DEST."""
    dest.mkdir()
    (dest / "compression.json").write_text("{}")
    (dest / "model.safetensors").write_bytes(b"of a former run")
    return tree(dest)
