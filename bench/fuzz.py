"""Reads hostile files for as long as one likes, and adds what was counted to bench/results/fuzz.json.

    python bench/fuzz.py --seconds 900
    python bench/fuzz.py --seconds 0        prints what is on record

Every target (`tests/hostile_targets.py`) runs in a fork of its own (`fuzz_once.py`), guided by
coverage, for its part of the time, and goes on from the inputs that former runs have kept in
build/fuzz. Exits with 1 where anything broke: the input and its traceback lie there.
"""

import json
import os
import signal
import sys
import time
import traceback
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]


RECORD = "fuzz.json"
SHARE_OF_WHOLE = 0.1  # of the time, for the targets that take milliseconds
SILENCE = 600.0  # seconds without a count, after which a process hangs
SUMMED = ("executions", "taken", "refused", "broken", "seconds")
HIGHEST = ("slowest_s", "peak_mb")


def once(name: str, folder: Path, seconds: float) -> dict:
    """What a process of its own counted; one that died, or stopped counting, is something that broke."""
    from fuzz_once import fuzz

    folder.mkdir(parents=True, exist_ok=True)
    told, log = folder / "counts.json", folder / "log.txt"
    told.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            fuzz(name, folder, seconds)
        finally:
            traceback.print_exc()
            os._exit(1)
    heard = time.time()
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        time.sleep(0.5)
        heard = max(heard, told.stat().st_mtime) if told.exists() else heard
        if time.time() - heard > SILENCE:
            os.kill(child, signal.SIGKILL)
    counts = dict.fromkeys((*SUMMED, *HIGHEST), 0)
    counts |= json.loads(told.read_text()) if told.exists() else {}
    if ended[1]:
        counts["broken"] += 1
        print(f"{name} ended with {ended[1]}; see {log}")
    return counts


def about() -> dict:
    """When, on what, and with what."""
    from measure import printed

    from compressor.writing.record import versions

    commit = printed(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]) or "unknown"
    used = versions() | {"atheris": version("atheris")}
    return {"date": date.today().isoformat(), "commit": commit, "versions": used}


def added(record: dict, found: dict[str, dict], about: dict) -> dict:
    """The record with another run's counts."""
    for name, counts in found.items():
        row = record["targets"].setdefault(name, dict.fromkeys((*SUMMED, *HIGHEST), 0))
        for key in SUMMED:
            row[key] = round(row[key] + counts[key], 1)
        for key in HIGHEST:
            row[key] = max(row[key], counts[key])
    total = {key: round(sum(each[key] for each in found.values()), 1) for key in SUMMED}
    record["runs"].append(about | total)
    return record


def shown(record: dict) -> Table:
    columns = ("target", "executions", "taken", "refused", "broken", "slowest, s", "peak, MB")
    table = Table(*columns, box=box.MARKDOWN)
    for name, row in record["targets"].items():
        table.add_row(name, *(f"{row[key]:,}" for key in (*SUMMED[:-1], *HIGHEST)))
    rows = record["targets"].values()
    totals = [f"{sum(row[key] for row in rows):,}" for key in SUMMED[:-1]]
    table.add_row("all", *totals, *(f"{max(row[key] for row in rows):,}" for key in HIGHEST))
    return table


def main(
    seconds: Annotated[float, typer.Option(help="How long all targets run together.")] = 900,
    only: Annotated[list[str] | None, typer.Option(help="These targets alone.")] = None,
    place: Annotated[Path, typer.Option(help="Where inputs are kept.")] = ROOT / "build/fuzz",
    results: Annotated[Path, typer.Option(help="Folder of the record.")] = ROOT / "bench/results",
) -> None:
    if seconds:
        import fuzz_once  # noqa: F401  # before anything else imports what it instruments
    from hostile_targets import QUICK, TARGETS

    file = results / RECORD
    former = file.read_text() if file.exists() else json.dumps({"targets": {}, "runs": []})
    record = json.loads(former)
    quick = {target.name for target in QUICK}
    chosen = only or [*TARGETS]
    weights = {
        name: (1 - SHARE_OF_WHOLE) / len(QUICK)
        if name in quick
        else SHARE_OF_WHOLE / (len(TARGETS) - len(QUICK))
        for name in chosen
    }
    found: dict[str, dict] = {}
    for name in chosen if seconds else ():
        found[name] = once(name, place / name, seconds * weights[name] / sum(weights.values()))
        record = added(json.loads(former), found, about())  # so far: a run may be stopped
        file.write_text(json.dumps(record, indent=1) + "\n")
        counts = found[name]
        print(f"{name}: {counts['executions']:,} executions, {counts['broken']} broken", flush=True)
    if record["targets"]:
        Console(width=140).print(shown(record))
    raise SystemExit(1 if any(counts["broken"] for counts in found.values()) else 0)


if __name__ == "__main__":
    typer.run(main)
