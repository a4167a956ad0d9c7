"""`make torture`: jobs that are killed, and jobs whose calls of the system fail, for so many minutes.

    python tests/torture/main.py [--minutes 60] [--record FILE] [--parts kills faults] [--only NAME ...]

Goes on in later runs: every run adds to the record, draws other moments, and prints the totals.
"""

import argparse
import sys
from pathlib import Path

from torture import record
from torture.loading import load_first

RECORD = record.ROOT / "bench/results/torture.jsonl"
BUILD = record.ROOT / "build/torture"
PARTS = ("kills", "faults")


def asked(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--only", nargs="+", default=[], help="Cases whose names begin so.")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="End after so many.")
    parser.add_argument("--jobs", type=int, help="Jobs of a case that are killed in a row.")
    parser.add_argument("--each", type=int, default=4, help="Of every fault, in a case.")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    given = asked(arguments)
    if "faults" in given.parts:
        load_first(BUILD)
    from torture.rounds import rounds  # which imports all that a job needs

    failed = rounds(given)
    print(record.totals(record.entries(given.record)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
