"""`make torture`: jobs that are killed, and jobs whose calls of the system fail, for so many minutes.

    python tests/torture/main.py [--minutes 60] [--record FILE] [--parts kills faults] [--only NAME ...]

Goes on in later runs: every run adds to the record, draws other moments, and prints the totals.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from torture import record
from torture.cases import Case, cases, make_places
from torture.faults import Faults, load_first
from torture.forked import adopt_orphans, import_all, run, tell_stages
from torture.kills import Broken, Tally, Torture

RECORD = record.ROOT / "bench/results/torture.jsonl"
BUILD = record.ROOT / "build/torture"
PARTS = ("kills", "faults")
# One of each kind: faults are tried at many calls of a job, and jobs of a kind make the same ones.
FAULTY = (
    "repair refine", "layout nas", "recover distill", "quantize w4a16", "sparsify besa",
    "several ratios", "calibration own", "drawn", "stage score", "stage cut",
)  # fmt: skip


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


def chosen(given: argparse.Namespace, part: str) -> list[Case]:
    only = (*given.only, *(FAULTY if part == "faults" and not given.only else ()))
    return [each for each in cases() if not only or each.name.startswith(only)]


def finish(arguments: list[str], out: Path) -> None:
    ended = run(arguments, out)
    if ended.code:
        raise SystemExit(f"{' '.join(arguments)} ends with {ended.code}: {ended.said}")


def tortured(
    part: str, case: Case, places: dict[str, Path], root: Path, given: argparse.Namespace
) -> Tally:
    """One part of a case; the first failure ends it."""
    tally, jobs = Tally(), given.jobs or case.jobs
    shutil.rmtree(root, ignore_errors=True)
    former = record.runs_of(record.entries(given.record), part, case.name)
    try:
        torture = Torture.of(case, places, root)
        if part == "faults":
            Faults(torture).sweep(former, given.each, tally)
        else:
            for seed in range(former * jobs, (former + 1) * jobs):
                torture.chain(seed, tally)
    except (Broken, TimeoutError) as error:
        tally.failures.append(f"run {former}: {error}")
    return tally


def torture(given: argparse.Namespace, root: Path, until: float) -> int:
    """All cases in turn, as often as was asked for or until the time is over; how many failed."""
    places = make_places(root, lambda arguments: finish(arguments, root / "said"))
    failed = 0
    for _ in range(given.rounds):
        for part, case in [(p, case) for p in given.parts for case in chosen(given, p)]:
            if time.monotonic() > until:
                return failed
            tally = tortured(part, case, places, root / "case", given)
            record.append(given.record, record.line(case.name, tally, part))
            failed += len(tally.failures)
            print(f"{case.name}: {part} {tally.kills.total()} {tally.failures or ''}", flush=True)
    return failed


def main(arguments: list[str]) -> int:
    given = asked(arguments)
    if "faults" in given.parts:
        load_first(BUILD)
    until = time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    import_all()
    adopt_orphans()
    tell_stages()
    root = Path(
        tempfile.mkdtemp(prefix="torture-")
    )  # no object that a fork would clear away with it
    try:
        failed = torture(given, root, until)
    finally:
        shutil.rmtree(root)
    print(record.totals(record.entries(given.record)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
