"""The cases in turn: killed, and with faults."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torture import record
from torture.cases import Case, cases, make_places
from torture.faults import Faults
from torture.forked import adopt_orphans, import_all, run, tell_stages
from torture.kills import Broken, Torture
from torture.record import Tally

# One of each kind: faults are tried at many calls of a job, and jobs of a kind make the same ones.
FAULTY = (
    "repair refine", "layout nas", "recover distill", "quantize w4a16", "sparsify besa",
    "several ratios", "calibration own", "drawn", "stage score", "stage cut",
)  # fmt: skip


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


def rounds(given: argparse.Namespace) -> int:
    """All cases in turn, as often as was asked for or until the time is over; how many failed."""
    until = time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    import_all()
    adopt_orphans()
    tell_stages()
    # No object, which a fork would clear away at its end.
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        return all_cases(given, root, until)
    finally:
        shutil.rmtree(root)


def all_cases(given: argparse.Namespace, root: Path, until: float) -> int:
    """The same in a folder, with what the cases read in it."""
    in_turn = [(part, case) for part in given.parts for case in chosen(given, part)]
    used = {name for _, case in in_turn for name in case.uses}
    places = make_places(root, used, lambda arguments: finish(arguments, root / "said"))
    failed = 0
    for _ in range(given.rounds):
        for part, case in in_turn:
            if time.monotonic() > until:
                return failed
            tally = tortured(part, case, places, root / "case", given)
            record.append(given.record, record.line(case.name, tally, part))
            failed += len(tally.failures)
            print(f"{case.name}: {part} {tally.kills.total()} {tally.failures or ''}", flush=True)
    return failed
