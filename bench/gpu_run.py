"""Runs the parts of `bench/gpu.sh` one after the other, each with its own time-out, and tells how each
ended.

    python bench/gpu_run.py 1 --out build/gpu [--device cpu] [--parts 'smoke ops'] [--most 60]

OUT/rows-CALL.jsonl has a line for every case as it ended and one for every part; OUT/log-CALL.txt what
was printed. The figures and the table in the end are short, for where only the end of the output is
kept; they come too where the whole run is told to end (SIGTERM). The exit code is 1 where anything
failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

import gpu_rows
from gpu_parts import LIMITS, SLOWER, Part, Place, left_out, parts_of
from gpu_report import report
from gpu_rows import rows_of

GRACE = 8  # seconds to end in, for a command that is told to
WIDTH = 100  # of what is said of a failure
NAMES = (("rows", "jsonl"), ("log", "txt"))


@dataclass(frozen=True)
class Ended:
    """A part that is over. result: ok, failed, timed out, or left out."""

    name: str
    seconds: float
    result: str
    cases: str = ""
    why: str = ""


class Told(Exception):
    """The run was told to end."""


class Run:
    """The files of one call, and the time that is left of it."""

    def __init__(self, place: Place, call: int, limit: float, most: float):
        self.place, self.most = place, most
        self.rows, self.log = (place.out / f"{n}-{call}.{e}" for n, e in NAMES)
        self.rows.touch()
        self.log.write_text("")
        self.end = time.monotonic() + limit

    def forget(self, parts: list[Part]) -> None:
        """What an earlier run left of these parts goes; what it left of others stays."""
        names = {part.name for part in parts}
        kept = [row for row in rows_of(self.rows) if row.get("part") not in names]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def part(self, part: Part) -> Ended:
        """One part, whatever becomes of it."""
        slower = SLOWER if self.place.device == "cpu" else 1
        limit = min(slower * part.limit, self.most, self.end - time.monotonic() - GRACE)
        if limit <= 0:
            return self.ended(Ended(part.name, 0, "left out", why="no time left"))
        before, begun = {*lines_of(self.place.out, part.results)}, time.monotonic()
        with self.log.open("a") as log:
            log.write(f"\n== {part.name}: {' '.join(part.command)}\n")
            log.flush()
            place = log.tell()
            code = completed(part.command, log, limit, self.environment(part))
        seconds = time.monotonic() - begun
        for line in lines_of(self.place.out, part.results):
            if line not in before:
                named = {"part": part.name, "name": part.name, "result": "ok"}
                self.put(named | {"figures": json.loads(line)})
        cases = [row for row in rows_of(self.rows) if row.get("part") == part.name]
        bad = [row for row in cases if row.get("result") == "failed"]
        why = wrong(bad)
        if code is None:
            result, why = "timed out", why or f"after {limit:.0f} s"
        elif code or bad:
            result, why = "failed", why or self.last_line(place) or f"exit code {code}"
        else:
            result = "ok"
        return self.ended(Ended(part.name, seconds, result, counted(cases), why[:300]))

    def last_line(self, place: int) -> str:
        """The last that was printed from there on."""
        said = self.log.read_bytes()[place:].decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def environment(self, part: Part) -> dict[str, str]:
        return os.environ | {gpu_rows.FILE: str(self.rows), gpu_rows.PART: part.name}

    def ended(self, ended: Ended) -> Ended:
        self.put({"part": ended.name} | vars(ended))
        print(f"{ended.name}: {ended.result}, {ended.seconds:.0f} s", flush=True)
        return ended

    def put(self, row: dict) -> None:
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


def completed(command: Sequence[str], log, limit: float, environment: dict) -> int | None:
    """The exit code, or None where time ran out; then, as when the run is told to end, nothing of the
    command is left, its children included.
    """
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with suppress(ProcessLookupError):  # of the children that it left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lines_of(folder: Path, pattern: str) -> list[str]:
    """Every result in the files of this name, as one line each; a file that is half written has none."""
    found: list[dict] = []
    for file in sorted(folder.glob(pattern)) if pattern else []:
        with suppress(json.JSONDecodeError):
            rows = json.loads(file.read_text())
            found += rows if isinstance(rows, list) else [rows]
    return [json.dumps(row) for row in found]


def counted(cases: list[dict]) -> str:
    """ "61 ok, 2 failed"; a test that failed twice, in its worker and by it, counts once."""
    results = {row["name"]: row.get("result", "ok") for row in cases}
    kinds = dict.fromkeys(results.values())
    return ", ".join(f"{[*results.values()].count(kind)} {kind}" for kind in kinds)


def wrong(bad: list[dict]) -> str:
    """The first that is said of each case that failed."""
    reasons = {row["name"]: row.get("why", "") for row in reversed(bad)}
    return "; ".join(f"{short(name)}: {said}" for name, said in reversed(reasons.items()))


def short(name: str) -> str:
    """A test by its name alone."""
    return name.rpartition("::")[2]


def table(ended: list[Ended]) -> str:
    """A line a part, made to be read in the end of an output."""
    lines = [f"{'part':<12} {'seconds':>7}  {'result':<10} cases, and what failed"]
    for each in ended:
        said = "; ".join(filter(None, (each.cases, each.why)))
        lines.append(f"{each.name:<12} {each.seconds:>7.0f}  {each.result:<10} {said[:WIDTH]}")
    return "\n".join([*lines, *(f"not measured: {what}" for what in left_out())])


def run_all(run: Run, parts: list[Part]) -> list[Ended]:
    """What became of every part."""

    def told(*_) -> None:
        raise Told

    run.forget(parts)
    former = signal.signal(signal.SIGTERM, told)
    ended: list[Ended] = []
    try:
        for part in parts:
            ended.append(run.part(part))
    except Told:
        begun = parts[len(ended)].name
        ended.append(run.ended(Ended(begun, 0, "failed", why="the run was told to end")))
    finally:
        signal.signal(signal.SIGTERM, former)
    missing = parts[len(ended) :]
    return [*ended, *(run.ended(Ended(p.name, 0, "left out", why="told to end")) for p in missing)]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("call", type=int, choices=LIMITS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default="", help="These alone, by their names.")
    parser.add_argument("--most", type=float, default=600, help="Seconds of a part.")
    asked = parser.parse_args(given)
    work = Path(tempfile.mkdtemp(prefix="gpu-"))
    place = Place(asked.device, asked.out.resolve(), work)
    parts, wanted = parts_of(asked.call, place), asked.parts.split()
    if unknown := {*wanted} - {part.name for part in parts}:
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    chosen = [part for part in parts if not wanted or part.name in wanted]
    place.out.mkdir(parents=True, exist_ok=True)
    limit = LIMITS[asked.call] * (SLOWER if asked.device == "cpu" else 1)
    run = Run(place, asked.call, limit, asked.most)
    try:
        ended = run_all(run, chosen)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(report(rows_of(run.rows)), table(ended), sep="\n", flush=True)
    return int(any(each.result != "ok" for each in ended))


if __name__ == "__main__":
    sys.exit(main())
