"""`make torture`: jobs that are killed, and what faults do to them, for so many minutes.

    python tests/torture/main.py --minutes 60 [--record FILE] [--only NAME ...] [--kills N]

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
from torture.forked import adopt_orphans, import_all, run, tell_stages
from torture.kills import Broken, Tally, Torture

RECORD = record.ROOT / "bench/results/torture.jsonl"


def asked(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--only", nargs="+", default=[], help="Cases whose names begin so.")
    parser.add_argument("--kills", type=int, default=sys.maxsize, help="End after so many.")
    return parser.parse_args(arguments)


def chosen(only: list[str]) -> list[Case]:
    return [each for each in cases() if not only or each.name.startswith(tuple(only))]


def finish(arguments: list[str], out: Path) -> None:
    ended = run(arguments, out)
    if ended.code:
        raise SystemExit(f"{' '.join(arguments)} ends with {ended.code}: {ended.said}")


def tortured(case: Case, places: dict[str, Path], root: Path, first: int) -> Tally:
    """A case, killed in some jobs; the first failure ends it."""
    tally = Tally()
    shutil.rmtree(root, ignore_errors=True)
    try:
        torture = Torture.of(case, places, root)
        for seed in range(first, first + case.jobs):
            torture.chain(seed, tally)
    except (Broken, TimeoutError) as error:
        tally.failures.append(f"seed {first}: {error}")
    return tally


def torture(given: argparse.Namespace, root: Path, until: float) -> int:
    """All cases in turn, until the time is over or there are kills enough; how many of them failed."""
    places = make_places(root, lambda arguments: finish(arguments, root / "said"))
    kills = failed = 0
    while True:
        for case in chosen(given.only):
            if time.monotonic() > until or kills >= given.kills:
                return failed
            seed = case.jobs * record.runs_of(record.entries(given.record), case.name)
            tally = tortured(case, places, root / "case", seed)
            record.append(given.record, record.line(case.name, tally))
            kills += tally.kills.total()
            failed += len(tally.failures)
            print(f"{case.name}: {tally.kills.total()} kills {tally.failures or ''}", flush=True)


def main(arguments: list[str]) -> int:
    given = asked(arguments)
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
