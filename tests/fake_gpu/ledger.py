"""What a fake device was asked to do, by the line of the project that asked.

Kinds: `kernels`, `waits` of the host for the device, copies `to_device` and `to_host`.
"""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PARTS = (str(ROOT / "compressor"), str(ROOT / "kernels"))


class Ledger:
    """Counts by (kind, operation, (file, line)); `bytes` by kind."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.bytes: Counter = Counter()

    def clear(self) -> None:
        self.counts.clear()
        self.bytes.clear()

    def note(self, kind: str, operation: str, size: int = 0) -> None:
        self.counts[kind, operation, asking()] += 1
        self.bytes[kind] += size

    def total(self, kind: str) -> int:
        return sum(n for (what, *_), n in self.counts.items() if what == kind)


LEDGER = Ledger()


def asking() -> tuple[str, int]:
    """File and number of the innermost line of the project's own code."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PARTS):
            return file[len(str(ROOT)) + 1 :], frame.f_lineno
        frame = frame.f_back
    return "elsewhere", 0
