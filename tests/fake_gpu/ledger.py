"""What a fake device was asked to do, by the line of the project that asked."""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PARTS = (str(ROOT / "compressor"), str(ROOT / "kernels"))
KINDS = ("kernels", "waits", "to_device", "to_host")


class Ledger:
    """Counts by (kind, operation, line); `bytes` by kind and line. Lines are `path:number`."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.bytes: Counter = Counter()

    def clear(self) -> None:
        self.counts.clear()
        self.bytes.clear()

    def note(self, kind: str, operation: str, size: int = 0) -> None:
        line = asking()
        self.counts[kind, operation, line] += 1
        self.bytes[kind, line] += size

    def total(self, kind: str, file: str = "") -> int:
        """How often, of all lines of a file whose name ends so."""
        return sum(
            n
            for (k, _, line), n in self.counts.items()
            if k == kind and file_of(line).endswith(file)
        )

    def by_line(self, kind: str) -> list[tuple[str, str, int]]:
        """(line, operation, count), the most first."""
        found = [(line, op, n) for (k, op, line), n in self.counts.items() if k == kind]
        return sorted(found, key=lambda row: -row[2])


LEDGER = Ledger()


def asking() -> str:
    """The innermost line of the project's own code."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PARTS):
            return f"{Path(file).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere:0"


def file_of(line: str) -> str:
    return line.rpartition(":")[0]
