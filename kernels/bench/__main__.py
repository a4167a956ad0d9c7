"""Times one op beside its baselines, under pytest-benchmark.

    python -m compressor.kernels.bench OP [--dtype float32] [--shape 4096x11008] [options of pytest]

Needs torch, pytest and pytest-benchmark, and nothing else that this package does. Options that are not
listed here go to pytest, those of pytest-benchmark among them:

    python -m compressor.kernels.bench colsum --benchmark-save before
    python -m compressor.kernels.bench colsum --benchmark-compare --benchmark-compare-fail median:20%
"""

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

import torch

from compressor.kernels.bench.cases import CASES
from compressor.kernels.bench.speed import Timing

HERE = Path(__file__).parent
NEEDED = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}  # module -> package
# Nothing of the folder it is called in changes what is timed: no settings, no conftest.py.
PYTEST = (str(HERE / "speed.py"), "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(HERE))
PYTEST += ("-p", "no:cacheprovider", "--import-mode=importlib")


class Wrong(Exception):
    """A sentence about what was asked."""


class Plugin:
    """Has pytest time these, and tells their figures in the end."""

    def __init__(self, timings: list[Timing]):
        self.timings, self.rows = timings, []

    def pytest_generate_tests(self, metafunc) -> None:
        metafunc.parametrize("timing", self.timings, ids=str)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call":
            self.rows += [row for name, row in report.user_properties if name == "figures"]

    def pytest_terminal_summary(self, terminalreporter) -> None:
        for line in lines(self.rows):
            terminalreporter.write_line(line)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m compressor.kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("op", metavar="OP", help=", ".join(CASES))
    made.add_argument("--dtype", action="append", help="bfloat16 by default; may be repeated")
    made.add_argument("--shape", action="append", help="4096x11008; may be repeated")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--compile", action="store_true", help="beside torch.compile on a CPU, too")
    return made


def asked(options: argparse.Namespace) -> list[Timing]:
    """What is to be timed; `Wrong` before anything is."""
    op, device = options.op, options.device
    if op not in CASES:
        raise Wrong(f"No op is called {op!r}; the ops are {', '.join(CASES)}.")
    if device not in ("cpu", "cuda"):
        raise Wrong(f"--device is {device!r}; it is cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise Wrong("--device is cuda, and torch finds none here; leave it out to time the CPU.")
    family = CASES[op]
    for dtype in options.dtype or ():
        if dtype not in family.dtypes:
            raise Wrong(f"--dtype is {dtype!r}; {op} is timed in {', '.join(family.dtypes)}.")
    shapes = [shape_of(each) for each in options.shape or ()] or family.shapes[device]
    providers = family.providers["cuda" if options.compile else device]
    timings = [
        Timing(op, shape, dtype, provider, device)
        for dtype in options.dtype or family.dtypes[:1]
        for shape in shapes
        for provider in providers
    ]
    for timing in timings:
        try_without_memory(timing)
    return timings


def shape_of(text: str) -> tuple[int, int]:
    """Of `4096x11008`."""
    if found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text):
        return int(found[1]), int(found[2])
    raise Wrong(f"--shape is {text!r}; it is two sizes, as 4096x11008.")


def try_without_memory(timing: Timing) -> None:
    """The op's own checks, on tensors that have no numbers."""
    try:
        CASES[timing.op].case(timing.shape, "meta", timing.dtype).providers["ours"]()
    except (TypeError, ValueError) as error:
        raise Wrong(f"--shape: {error}") from None


def lines(rows: list[dict]) -> list[str]:
    """A line a timing: milliseconds, the rate of the bytes that must move, time over ours."""
    ours = {(*r["shape"], r["dtype"]): r["seconds"] for r in rows if r["provider"] == "ours"}
    told = []
    for row in rows:
        first = ours.get((*row["shape"], row["dtype"]))
        where = f"{row['op']} {' x '.join(map(str, row['shape']))} {row['dtype']}"
        rate = row["bytes"] / row["seconds"] / 1e9
        text = f"{where}: {row['provider']} {row['seconds'] * 1e3:.3f} ms, {rate:.1f} GB/s"
        if first and row["provider"] != "ours":
            text += f", {row['seconds'] / first:.2f} times ours"
        told.append(text)
    return told


def main(arguments: list[str] | None = None) -> int:
    """The exit code: pytest's, or 2 where what was asked cannot be done."""
    options, further = parser().parse_known_args(arguments)
    try:
        timings = asked(options)
        for module, package in NEEDED.items():
            if importlib.util.find_spec(module) is None:
                raise Wrong(f"The benchmarks need {package}: pip install pytest-benchmark")
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 2
    import pytest

    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    return int(pytest.main([*PYTEST, *further], plugins=[Plugin(timings)]))


if __name__ == "__main__":
    sys.exit(main())
