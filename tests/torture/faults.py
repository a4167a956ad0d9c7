"""What the system refuses a job, at every call that it can refuse: a full disk, a device that fails, a
disk that may only be read, files that may not grow, memory that is limited.

Calls fail in the process itself (`faults.c`): what the job's own code calls, and what the libraries do.
"""

import atexit
import ctypes
import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.forked import Ended, run, tell
from torture.kills import Broken, Torture, refused
from torture.loading import LIBRARY
from torture.record import Tally
from torture.trees import beside, bytes_lost, tree, whole

REFUSED_BY_THE_MACHINE = 4  # the exit code
ROOM, BYTES = 0, 1  # kinds of calls, as faults.c has them
MIB = 1 << 20


@dataclass(frozen=True)
class Fault:
    """kind: of the calls that fail; on: whether all behind the first one fail, too."""

    name: str
    error: int
    kind: int
    on: bool


FAULTS = (
    Fault("ENOSPC", errno.ENOSPC, ROOM, True),
    Fault("EIO", errno.EIO, BYTES, False),
    Fault("EROFS", errno.EROFS, ROOM, True),
)


def failing(root: Path, fault: Fault, at: int, before: Callable[[], None]) -> Callable[[], None]:
    """For `before`: call number `at` of a fault's kind fails; none does if it is negative."""

    def arm() -> None:
        before()
        library = ctypes.CDLL(os.environ[LIBRARY])
        library.faults_seen.restype = ctypes.c_long
        atexit.register(lambda: tell(count=library.faults_seen()))
        library.faults_arm(
            str(root).encode(), fault.kind, ctypes.c_long(at), fault.error, int(fault.on)
        )

    return arm


def limited(kind: int, most: int, before: Callable[[], None]) -> Callable[[], None]:
    """For `before`: a limit of the system (`resource.RLIMIT_FSIZE`).

    Where a library in Rust gets not even a few bytes, it aborts: that is as a kill.
    """

    def limit() -> None:
        before()
        resource.setrlimit(kind, (most, resource.RLIM_INFINITY))

    return limit


def mapped() -> int:
    """Bytes of address space that this process has by now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@dataclass(frozen=True)
class Faults:
    """Faults of one case."""

    torture: Torture

    def one(self, name: str, seed: int, before: Callable[[Path], Callable[[], None]], tally: Tally):
        """A job in which a fault happens, and the same job afterwards."""
        torture = self.torture
        folder = torture.root / f"{name} {seed}"
        folder.mkdir()
        dest, out = folder / "out", torture.root / "said"
        arguments = torture.case.filled(torture.places, dest)
        ended = run(arguments, out, before(folder))
        where = f"{name} {seed} in {ended.stage}"
        aborted = name == "RLIMIT_AS" and ended.code == -signal.SIGABRT
        if ended.code not in (0, REFUSED_BY_THE_MACHINE) and not aborted:
            raise Broken(f"{where}: exit code {ended.code}: {ended.said[-2500:]}")
        if "Traceback" in ended.said:
            raise Broken(f"{where}: it ended with a traceback: {ended.said[-2500:]}")
        if wrong := whole(dest, torture.reference, None):
            raise Broken(f"{where}: {wrong}")
        if ended.code:
            tally.kills[name] += 1
            tally.stages[ended.stage] += 1
            self.again(arguments, dest, out, ended, where)
        else:
            tally.too_late += 1
        lost = bytes_lost(dest, torture.reference)
        tally.bytes_lost += lost
        if lost or tree(dest) != tree(torture.reference) or beside(dest):
            raise Broken(f"{where}: the result differs, or {beside(dest)} is left")
        tally.finished += 1
        shutil.rmtree(folder)

    def again(self, arguments: list[str], dest: Path, out: Path, ended: Ended, where: str) -> None:
        """The job once more, as the sentences say that it goes on."""
        said = ended
        for _ in range(2):
            options = ["--resume"] if "add --resume" in said.in_a_line else []
            said = run([*arguments, *options], out, self.torture.draws)
            if not refused(said):
                break
        if said.code:
            raise Broken(
                f"{where} ({ended.in_a_line[-300:]}), and then: {said.code}: {said.in_a_line[-500:]}"
            )

    def sweep(self, seed: int, most: int, tally: Tally) -> None:
        """Every fault at calls that are drawn, at most so many of each."""
        draw, torture = random.Random(f"{self.torture.case.name} {seed}"), self.torture
        counts = {fault.kind: self.count(fault) for fault in FAULTS}
        for fault in FAULTS:
            count = counts[fault.kind]
            for at in draw.sample(range(count), min(most, count)):
                self.one(
                    fault.name, at,
                    lambda folder, fault=fault, at=at: failing(folder, fault, at, torture.draws), tally,
                )  # fmt: skip
        largest = max(f.stat().st_size for f in files(torture.reference))
        for size in draw.sample(range(1, largest), most):
            self.one(
                "RLIMIT_FSIZE", size,
                lambda _, size=size: limited(resource.RLIMIT_FSIZE, size, torture.draws), tally,
            )  # fmt: skip
        for _ in range(most):
            room = int(draw.uniform(0, 64) * MIB)
            self.one(
                "RLIMIT_AS", room,
                lambda _, room=room: limited(resource.RLIMIT_AS, mapped() + room, torture.draws), tally,
            )  # fmt: skip

    def count(self, fault: Fault) -> int:
        """How many calls of a fault's kind an uninterrupted job makes."""
        folder = self.torture.root / f"count {fault.name}"
        folder.mkdir()
        arguments = self.torture.case.filled(self.torture.places, folder / "out")
        ended = run(
            arguments, self.torture.root / "said", failing(folder, fault, -1, self.torture.draws)
        )
        shutil.rmtree(folder)
        if ended.code or not ended.operations:
            raise Broken(f"{fault.name} is counted with {ended.code}, {ended.operations} calls")
        return ended.operations


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
