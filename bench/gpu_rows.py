"""Rows of a GPU run: each case is appended to one file as it ends, whatever becomes of the next.

`put` adds a line of JSON to the file that `bench/gpu_run.py` names, and does nothing where none is
named. As a plugin of pytest (`-p gpu_rows`) this module puts every test. A test that loses the device
(an address that is not there) ends its worker, which pytest-xdist replaces: else every later test of
that process would fail with it.
"""

import fcntl
import json
import os
from pathlib import Path

import pytest

FILE, PART = "GPU_ROWS", "GPU_PART"
LOST = (  # CUDA's words for what no later call of the process recovers from
    *("illegal memory access", "illegal instruction", "misaligned address"),
    *("launch failure", "device-side assert", "uncorrectable"),
)


def put(name: str, seconds: float, result: str = "ok", **more) -> None:
    """One case that ended. more: its figures, or `why` it failed."""
    if not (path := os.environ.get(FILE)):
        return
    row = {"part": os.environ.get(PART), "name": name, "seconds": round(seconds, 6)}
    line = json.dumps(row | {"result": result} | more)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # many processes end cases at once
        file.write(line + "\n")


def rows_of(file: Path) -> list[dict]:
    """The rows that are whole: a process that was killed may have left half of one."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def pytest_configure(config) -> None:
    config.pluginmanager.register(Rows(spread(config)), "rows of a GPU run")


def spread(config) -> bool:
    """Whether this is the process that hands tests out to others, which put them themselves."""
    return bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")


class Rows:
    def __init__(self, hands_out: bool):
        self.hands_out = hands_out

    def pytest_runtest_logreport(self, report) -> None:
        crashed = report.when == "???"  # xdist's word for a worker that is gone
        own = report.when == "call" or not report.passed
        if crashed if self.hands_out else own:
            result = {"passed": "ok"}.get(report.outcome, report.outcome)
            more = {"why": reason(report)} if report.outcome == "failed" else {}
            more |= dict(report.user_properties).get("figures", {})
            put(report.nodeid, getattr(report, "duration", 0.0), result, **more)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call) -> None:
        """Nothing of its own: where the device is lost, the end of this worker."""
        error = str(call.excinfo.value) if call.excinfo else ""
        if hasattr(item.config, "workerinput") and any(word in error for word in LOST):
            put(item.nodeid, call.duration, "failed", why=short(error))
            os._exit(1)


def reason(report) -> str:
    """The line that says what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return short(crash.message if crash else str(report.longrepr))


def short(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["without a word"])[0][:200]
