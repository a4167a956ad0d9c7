"""The real command in a process of its own, within a fifth of a second.

Importing what a job needs takes longer than a job on a tiny model. So one process imports it and does
nothing else, and every command is a fork of that: from there on it is a process like another, with the
command's own signal handlers, and with files, memory and children of its own.
"""

import atexit
import ctypes
import importlib
import mmap
import os
import pkgutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import compressor
from compressor.cli import running
from compressor.cli.stages import stages
from compressor.job.progress import Meter

PR_SET_CHILD_SUBREAPER = 36
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
BEGIN = "before all stages"
SLOW = 900.0  # seconds in which every command ends
SHARED = mmap.mmap(-1, 4096)  # a count of file operations, and the name of the stage
NAME = struct.Struct("q64s")


# What jobs import when they first need it.
LATER = (
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "peft",
    "accelerate",
    "transformers",
)


def import_all() -> None:
    """Import what any command would, so that none has to."""
    for module in pkgutil.walk_packages(compressor.__path__, "compressor."):
        ours = not any(part in module.name for part in ("modeling_", ".adapters", "kernels.bench"))
        if ours and not module.name.endswith(("__main__", ".bound")):
            importlib.import_module(module.name)
    for name in LATER:
        importlib.import_module(name)


def adopt_orphans() -> None:
    """What children leave behind becomes this process's child, and is seen so."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def told() -> tuple[int, str]:
    """Of the last command: its file operations so far, and the stage that it was in."""
    count, name = NAME.unpack_from(SHARED, 0)
    return count, name.rstrip(b"\0").decode()


def tell(count: int | None = None, name: str | None = None) -> None:
    before = told()
    count = before[0] if count is None else count
    NAME.pack_into(SHARED, 0, count, (before[1] if name is None else name).encode()[:64])


def tell_stages() -> None:
    """Have commands say which stage they are in."""
    stage = Meter.stage  # of this process, and so of all that are forked from it

    @contextmanager
    def telling(meter: Meter, name: str):
        outer = told()[1]
        tell(name=name)
        with stage(meter, name):
            yield
        tell(name=f"after {name}" if outer == BEGIN or outer.startswith("after ") else outer)

    Meter.stage = telling


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, what it said, and how long it took."""

    code: int
    said: str
    seconds: float
    stage: str
    operations: int

    @property
    def in_a_line(self) -> str:
        return " ".join(self.said.split())


def start(arguments: list[str], out: Path, before: Callable[[], None] = lambda: None) -> int:
    """A process with `compressor ARGUMENTS` in it, which says what it says in the file `out`.

    before: what is done in it first.
    """
    tell(0, BEGIN)
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(handle, number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command has its own
        sys.argv = ["compressor", *arguments]
        before()
        running.main(stages)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, out: Path, begun: float) -> Ended:
    """What came of a process; `TimeoutError` for one that hangs."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() - begun > SLOW:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"it did not end within {SLOW:.0f} s: {out.read_text()[-500:]}")
        time.sleep(0.002)
    seconds, (operations, stage) = time.monotonic() - begun, told()
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, out.read_text(errors="replace"), seconds, stage, operations)


def run(arguments: list[str], out: Path, before: Callable[[], None] = lambda: None) -> Ended:
    """A command, to its end."""
    begun = time.monotonic()
    return wait(start(arguments, out, before), out, begun)


def counting(
    root: Path,
    at: int | None = None,
    number: int = 0,
    before: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """For `before`: count the file operations in `root`; the one before number `at` sends the signal
    `number` to its own process.
    """
    inside, count = str(root), 0

    def hook(event: str, given: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and str(given[0]).startswith(inside):
            tell(count=count)
            if count == at:
                count += 1
                os.kill(os.getpid(), number)
            count += 1

    def begin() -> None:
        before()
        sys.addaudithook(hook)

    return begin


def orphans(patience: float = 5.0) -> list[int]:
    """Processes that commands have left and that go on, ended here."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        time.sleep(0.002)
    left = [int(n) for n in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return left
