"""Counts what ran, and fails a run from which a test or a backend silently disappeared.

`tests/counts.json` holds for every file the least number of cases in the set of `make test`: "tests",
and for those of an operator one number a device and backend ("cpu-triton"). A run is held to it in the
files and folders that it was given whole, whatever else it ran. `make counts` writes the file anew:
after tests were taken away on purpose, or to hold on to new ones.

A skip for a reason outside `REASONS` fails every run.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# How the reason of a skip may begin. What a machine lacks is one; what an installation lacks is none.
REASONS = (
    "needs a GPU",
    "needs a machine without a GPU",
    "needs ../shared",
    "needs nvcc",
    "needs a C++ compiler",
    "needs Linux",
    "COMPRESSOR_NO_EXTENSION=1",
    "not under make asan",
)
NEEDS_EXTENSION = pytest.mark.skipif(
    os.environ.get("COMPRESSOR_NO_EXTENSION") == "1", reason="COMPRESSOR_NO_EXTENSION=1"
)
FILE = "tests/counts.json"
# Marker expressions that run at least the set that is counted.
WHOLE = {"", "not slow", "not breadth"}
# Options that choose among the tests of a file.
CHOOSING = ("keyword", "deselect", "lf", "stepwise", "ignore_glob", "collectonly")

Counts = dict[str, dict[str, int]]


@dataclass
class Ran:
    """What was seen: for every file the cases of each kind, and how often each reason to skip."""

    files: dict[str, Counter] = field(default_factory=dict)
    skips: Counter = field(default_factory=Counter)

    def add(self, file: str, kind: str, skipped: str | None = None) -> None:
        """One case. A skipped test counts as one (its reason is judged), but no backend ran in it."""
        counts = self.files.setdefault(file, Counter())
        if skipped is not None:
            self.skips[skipped] += 1
        if skipped is None or kind == "tests":
            counts[kind] += 1

    def __str__(self):
        total = sum(self.files.values(), Counter())
        backends = [f"{kind} {total[kind]}" for kind in sorted(total) if kind != "tests"]
        line = f"cases of operators: {', '.join(backends) or 'none'}; other tests: {total['tests']}"
        reasons = [f"{reason} ({n})" for reason, n in sorted(self.skips.items())]
        return line + (f"; skipped: {', '.join(reasons)}" if reasons else "")


def complaints(ran: Ran, least: Counts, absent: set[str], why=lambda kind: None) -> list[str]:
    """What is missing, one sentence each; `least` of the files judged, without the kinds `absent`.

    why: from "cpu-triton" to why that backend cannot run here, None if it can.
    """
    found = [
        f"{n} skipped for a reason that is not in tests/counting.py: {reason}"
        for reason, n in sorted(ran.skips.items())
        if not reason.startswith(REASONS)
    ]
    for file, kinds in sorted(least.items()):
        for kind, wanted in kinds.items():
            here = ran.files.get(file, Counter())[kind]
            if here < wanted and kind not in absent:
                what = "tests" if kind == "tests" else f"cases on {kind}"
                because = f" ({reason})" if kind != "tests" and (reason := why(kind)) else ""
                found.append(f"{file}: {here} {what} ran, at least {wanted} should have{because}")
    return found


def absent_here(cuda: bool, platform: str = sys.platform, environment=os.environ) -> set[str]:
    """The kinds that cannot run on this machine, or that this installation was told to leave out."""
    absent = {"cpu-triton"} if cuda else {"cuda-ref", "cuda-triton", "cuda-ext"}
    if not platform.startswith("linux"):  # Triton is published for no other
        absent |= {"cpu-triton", "cuda-triton"}
    if environment.get("COMPRESSOR_NO_EXTENSION") == "1":
        absent |= {"cpu-ext", "cuda-ext"}
    if no_emulator(cuda, platform, environment):
        absent.add("cpu-emulated")
    return absent


def compiler(environment=os.environ) -> list[str]:
    return shlex.split(environment.get("CXX", "")) or ["c++"]


def no_emulator(cuda: bool, platform: str = sys.platform, environment=os.environ) -> str | None:
    """Why CUDA's kernels are not emulated here; None if they are. With a GPU they run on that."""
    if cuda:
        return "needs a machine without a GPU"
    if not platform.startswith("linux"):
        return "needs Linux"
    if environment.get("COMPRESSOR_NO_EXTENSION") == "1":
        return "COMPRESSOR_NO_EXTENSION=1"
    return None if shutil.which(compiler(environment)[0]) else "needs a C++ compiler"


def judged(config, least: Counts) -> Counts:
    """The part of `least` that lies in the files and folders that this run was given whole."""
    options = config.option
    parts = set(options.markexpr.split(" and "))
    if parts - WHOLE or any(getattr(options, name, None) for name in CHOOSING):
        return {}
    places = [config.invocation_params.dir / argument for argument in config.args]
    without = [config.invocation_params.dir / path for path in options.ignore or []]

    def inside(path: Path, folders: list[Path]) -> bool:
        return any(path.is_relative_to(os.path.abspath(folder)) for folder in folders)

    paths = {file: config.rootpath / file for file in least}
    return {f: least[f] for f, p in paths.items() if inside(p, places) and not inside(p, without)}


def kind_of(item) -> str:
    """ "cpu-triton" for a case that runs an operator on a backend, else "tests"."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    pair = parameters.get("device"), parameters.get("backend")
    return "-".join(pair) if all(isinstance(p, str) for p in pair) else "tests"


def counted(items: list) -> Counts:
    """The table of these cases, collected without a GPU: those of CUDA are the same, on the backends
    that an operator has there."""
    found: dict[str, Counter] = {}
    for item in items:
        counts = found.setdefault(item.nodeid.partition("::")[0], Counter())
        kind = kind_of(item)
        counts[kind] += 1
        backend = kind.removeprefix("cpu-")
        on_cuda = backend != "ext" or item.module.OP.defaults["cuda"] == "ext"
        if kind not in ("tests", "cpu-emulated") and on_cuda:
            counts[f"cuda-{backend}"] += 1
    return {file: dict(sorted(counts.items())) for file, counts in sorted(found.items())}


def written(counts: Counts) -> str:
    """One line a file, so that changes side by side do not meet."""
    lines = [f"  {json.dumps(file)}: {json.dumps(kinds)}" for file, kinds in counts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def add_option(parser) -> None:
    parser.addoption("--write-counts", action="store_true", help=f"Write {FILE} (`make counts`).")


class Counting:
    """The plugin. Under xdist every process notes the kinds and the first one counts."""

    def __init__(self, config, cuda: bool, why=lambda kind: None):
        self.config, self.cuda, self.why = config, cuda, why
        self.ran = Ran()
        self.wrong: list[str] = []
        self.new: list[str] = []

    def pytest_collection_finish(self, session) -> None:
        for item in session.items:
            item.user_properties.append(("kind", kind_of(item)))
        if self.config.option.write_counts:
            if self.cuda:
                raise pytest.UsageError("Counts are written where there is no GPU.")
            (self.config.rootpath / FILE).write_text(written(counted(session.items)))

    def pytest_collectreport(self, report) -> None:
        if report.skipped:  # a whole file
            self.ran.skips[reason_of(report)] += 1

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            kind = dict(report.user_properties).get("kind", "tests")
            reason = reason_of(report) if report.skipped else None
            self.ran.add(report.nodeid.partition("::")[0], kind, reason)

    def pytest_sessionfinish(self, session, exitstatus) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if hasattr(self.config, "workerinput") or not ended:
            return
        table = json.loads((self.config.rootpath / FILE).read_text())
        self.new = sorted({*self.ran.files} - {*table})
        stopped = session.shouldstop or session.shouldfail  # by --maxfail: the rest was not to run
        least = {} if stopped else judged(self.config, table)
        self.wrong = complaints(self.ran, least, absent_here(self.cuda), self.why)
        if self.wrong:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.ran.files:
            terminalreporter.write_line(str(self.ran))
        for line in self.wrong:
            terminalreporter.write_line(f"FAILED {line}", red=True)
        if any(line.startswith("tests/") for line in self.wrong):
            terminalreporter.write_line(f"If that is meant, `make counts` writes {FILE} anew.")
        if self.new:
            names = ", ".join(self.new)
            terminalreporter.write_line(f"Not counted before `make counts` is run: {names}")


def reason_of(report) -> str:
    """Why a report says skipped, in one line."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return re.sub(r"\s+", " ", reason.removeprefix("Skipped: "))
