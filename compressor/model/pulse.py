"""Whether the other ranks of a job are alive, and what they have to say: a thread beside the work.

Every rank writes a number that grows to the store that the processes have met at, the first rank reads
those of all others, and they its own. A rank whose number stands still is lost; so waiting for one that
only works long has no limit. An error goes the same way to the first rank, and that the job is over
from there to all others.
"""

import json
import threading
import time

import torch.distributed as dist

from compressor.errors import CompressorError, MachineError, as_error, in_a_line

EVERY = 0.5  # seconds between two beats
SILENT = 4 * EVERY  # seconds, after which a rank that others miss is dead
LOST = 40.0  # seconds without a beat, after which nobody waits any longer
LEFT = "left"


class Over(BaseException):
    """The first rank has ended the job, with this exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class OfARank(RuntimeError):
    """A bug's exception that another rank has raised."""


class Pulse:
    """trouble: why this rank cannot go on, once there is a reason; `check` raises it."""

    def __init__(self, store: dist.Store, rank: int, world: int):
        self.store, self.rank, self.world = store, rank, world
        self.others = range(1, world) if rank == 0 else range(1)
        now = time.monotonic()
        self.heard = dict.fromkeys(self.others, (b"", now))
        self.trouble: BaseException | None = None
        self.gone: set[int] = set()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def check(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def explained(self, error: Exception) -> BaseException:
        """What is behind an exchange that broke: what a rank has said meanwhile, or that one is lost."""
        begun = time.monotonic()
        while self.trouble is None and time.monotonic() - begun < 2 * SILENT:
            if silent := self.silent():
                return self.lost(silent[0])
            time.sleep(EVERY / 4)
        return self.trouble or MachineError(
            f"The connection of the ranks broke: {in_a_line(error)}"
        )

    def silent(self) -> list[int]:
        """The ranks that have not been heard for longer than one that lives is."""
        now = time.monotonic()
        return [
            other
            for other, (said, when) in self.heard.items()
            if said != LEFT.encode() and now - when > SILENT and other not in self.gone
        ]

    def looked_for(self) -> list[int]:
        """The silent ranks, after as long as it takes to know."""
        time.sleep(SILENT + EVERY)
        return self.silent()

    def lost(self, rank: int) -> MachineError:
        return MachineError(
            f"Rank {rank} of {self.world} is lost: its process has ended, or cannot be reached; any "
            "number of ranks can go on."
        )

    # -- what is said ------------------------------------------------------------------------------

    def tell(self, error: BaseException) -> None:
        """Give the first rank an error of this one to end the job with."""
        known = as_error(error)
        kind = type(known).__name__ if known else type(error).__name__
        said = str(known) if known else in_a_line(error)
        self.store.set("error", json.dumps([self.rank, kind, said]))

    def leave(self) -> None:
        """Say that this rank ends, without more."""
        self.stop()
        self.store.set(f"beat {self.rank}", LEFT)

    def end(self, code: int) -> None:
        """End the job in all ranks, and wait a moment for them to know."""
        self.store.set("over", str(code))
        begun = time.monotonic()
        while len(self.gone) < len(self.others) and time.monotonic() - begun < 2 * SILENT:
            if set(self.others) - self.gone <= {*self.silent()}:
                break
            time.sleep(EVERY / 10)
        self.stop()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    # -- the thread --------------------------------------------------------------------------------

    def _beat(self) -> None:
        count = 0
        while not self.stopped.wait(EVERY):
            count += 1
            try:
                self.store.set(f"beat {self.rank}", str(count))
                self.trouble = self._look() or self.trouble
            except RuntimeError:  # the store has gone with the process that holds it
                self.trouble = self.trouble or self.lost(0)

    def _look(self) -> BaseException | None:
        """What has become known since the last time."""
        for other in self.others:
            key = f"beat {other}"
            said = self.store.get(key) if self.store.check([key]) else b""
            before, when = self.heard[other]
            if said != before:
                self.heard[other] = said, time.monotonic()
        if self.rank:
            return self._look_at_first()
        self.gone |= {other for other in self.others if self.store.check([f"gone {other}"])}
        if self.store.check(["error"]):
            return raised(*json.loads(self.store.get("error")))
        for other, (said, when) in self.heard.items():
            if said == LEFT.encode():
                return MachineError(f"Rank {other} of {self.world} was ended by a signal.")
            if time.monotonic() - when > LOST:
                return self.lost(other)
        return None

    def _look_at_first(self) -> BaseException | None:
        if self.store.check(["over"]):
            code = int(self.store.get("over"))
            self.store.set(f"gone {self.rank}", "")
            return Over(code)
        return self.lost(0) if time.monotonic() - self.heard[0][1] > LOST else None


def raised(rank: int, kind: str, said: str) -> Exception:
    """The error that a rank has told of."""
    for known in kinds(CompressorError):
        if known.__name__ == kind:
            error = Exception.__new__(known)
            Exception.__init__(error, said)
            return error
    return OfARank(f"{kind} in rank {rank}: {said}")


def kinds(base: type[CompressorError]) -> list[type[CompressorError]]:
    """A class and all below it."""
    found = [base]
    for below in base.__subclasses__():
        found += kinds(below)
    return found
