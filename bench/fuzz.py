"""Reads hostile files for as long as one likes, and adds what was counted to bench/results/fuzz.json.

    python bench/fuzz.py --seconds 900
    python bench/fuzz.py --seconds 0        prints what is on record

Every target (`tests/hostile_targets.py`) runs in a process of its own (`fuzz_once.py`), guided by
coverage, for its part of the time, and goes on from the inputs that former runs have kept in
build/fuzz. Exits with 1 where anything broke: the input and its traceback lie there.
"""

import json
import os
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from hostile_targets import QUICK, TARGETS  # noqa: E402
from measure import printed  # noqa: E402

from compressor.writing.record import versions  # noqa: E402

RECORD = "fuzz.json"
SHARE_OF_WHOLE = 0.1  # of the time, for the targets that take milliseconds
STARTS = 600.0  # seconds that a process may take to start, and to answer
SUMMED = ("executions", "taken", "refused", "broken", "seconds")
HIGHEST = ("slowest_s", "peak_mb")


def once(name: str, folder: Path, seconds: float) -> dict:
    """What one process counted; one that died, or no longer counts, is something that broke."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "counts.json"
    told.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "bench/fuzz_once.py"), name, str(folder), str(seconds)]
    log = folder / "log.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment
        ) as child,
    ):
        heard = time.monotonic()
        while child.poll() is None:
            time.sleep(0.5)
            if told.exists():
                heard = max(heard, time.monotonic() - (time.time() - told.stat().st_mtime))
            if time.monotonic() - heard > STARTS:
                child.kill()
    counts = dict.fromkeys((*SUMMED, *HIGHEST), 0)
    counts |= json.loads(told.read_text()) if told.exists() else {}
    if child.returncode:
        counts["broken"] += 1
        print(f"{name} ended with {child.returncode}; see {log}")
    return counts


def about() -> dict:
    """When, on what, and with what."""
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
    table = Table(
        "target", "file", "executions", "taken", "refused", "broken", "slowest, s", "peak, MB"
    )
    for name, row in record["targets"].items():
        cells = (f"{row[key]:,}" for key in (*SUMMED[:-1], *HIGHEST))
        table.add_row(name, TARGETS[name].file if name in TARGETS else "", *cells)
    rows = record["targets"].values()
    totals = [f"{sum(row[key] for row in rows):,}" for key in SUMMED[:-1]]
    table.add_row("all", "", *totals, *(f"{max(row[key] for row in rows):,}" for key in HIGHEST))
    return table


def main(
    seconds: Annotated[float, typer.Option(help="How long all targets run together.")] = 900,
    only: Annotated[list[str] | None, typer.Option(help="These targets alone.")] = None,
    place: Annotated[Path, typer.Option(help="Where inputs are kept.")] = ROOT / "build/fuzz",
    results: Annotated[Path, typer.Option(help="Folder of the record.")] = ROOT / "bench/results",
) -> None:
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
