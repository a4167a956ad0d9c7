"""What `make torture` has seen so far: a line of JSON a case and run, added to and never rewritten."""

import json
import platform
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path

from compressor.writing.record import versions

ROOT = Path(__file__).parent.parent.parent


@cache  # of what this process has imported, whatever is committed meanwhile
def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


@dataclass
class Tally:
    """What happened to a case: kills by signal and by stage, jobs that were brought to their end."""

    kills: Counter = field(default_factory=Counter)
    stages: Counter = field(default_factory=Counter)
    too_late: int = 0  # moments that came after the end of the job
    finished: int = 0
    bytes_lost: int = 0
    failures: list[str] = field(default_factory=list)


def line(case: str, tally: Tally, kind: str = "kills") -> dict:
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": versions() | {"system": platform.system()},
        "kind": kind,
        "case": case,
        "kills": dict(sorted(tally.kills.items())),
        "stages": dict(sorted(tally.stages.items())),
        "too_late": tally.too_late,
        "finished": tally.finished,
        "bytes_lost": tally.bytes_lost,
        "failures": tally.failures,
    }


def append(file: Path, entry: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as record:
        record.write(json.dumps(entry) + "\n")


def entries(file: Path) -> list[dict]:
    if not file.exists():
        return []
    return [json.loads(each) for each in file.read_text(encoding="utf-8").splitlines()]


def runs_of(found: list[dict], kind: str, case: str) -> int:
    """How often a case is on record: a later run draws other moments."""
    return sum((entry["kind"], entry["case"]) == (kind, case) for entry in found)


def totals(found: list[dict]) -> str:
    """What is on record, in lines."""
    lines = []
    for kind in dict.fromkeys(entry["kind"] for entry in found):
        of_kind = [entry for entry in found if entry["kind"] == kind]
        counted = {name: Counter() for name in ("kills", "stages")}
        for entry in of_kind:
            for name, counter in counted.items():
                counter.update(entry[name])
        sums = {n: sum(e[n] for e in of_kind) for n in ("too_late", "finished", "bytes_lost")}
        days = sorted({entry["date"] for entry in of_kind})
        commits = sorted({entry["commit"] for entry in of_kind})
        failures = [f"{e['case']}: {failure}" for e in of_kind for failure in e["failures"]]
        lines += [
            f"{kind}: {counted['kills'].total()} in {len({e['case'] for e in of_kind})} cases, "
            f"{days[0]} to {days[-1]}, commits {', '.join(commits)}",
            f"  by what was done: {in_words(counted['kills'])}",
            f"  by where it hit: {in_words(counted['stages'])}",
            f"  moments after the end of the job: {sums['too_late']}",
            f"  jobs brought to their end and compared: {sums['finished']}; bytes lost: "
            f"{sums['bytes_lost']}; failures: {len(failures)}",
            *(f"  FAILED {failure}" for failure in failures),
        ]
    return "\n".join(lines)


def in_words(counter: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())
