"""A profiler's trace of a job, and its gaps: how long no operator of torch runs within a stage.

    python bench/trace.py [tinyllama-1.1b-4-blocks] [--samples 4] [--options "--repair ridge"]

Cuts a random checkpoint of a real model's shapes to 0.7 in this process under torch.profiler, CUDA
included where there is a GPU. Writes TRACE (build/trace.json, for https://ui.perfetto.dev), and prints
of every stage that goes through the blocks its seconds, the part of them in which nothing ran, and the
longest gap in parts of what a block takes: above 0.1 something waits that need not.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from make_checkpoint import make, shape

from compressor.cli.compress import app
from compressor.cli.running import run
from compressor.job.progress import Meter

KEEP = "0.7"
STAGES = ("score", "select", "repair")
MARK = "stage "
TRACE = Path(__file__).parent.parent / "build/trace.json"
Span = tuple[float, float]  # microseconds: from, to


@contextmanager
def marked():
    """While open, stages are spans of the trace, too."""
    plain = Meter.stage

    @contextmanager
    def stage(meter: Meter, name: str):
        with plain(meter, name), record_function(MARK + name):
            yield

    Meter.stage = stage  # type: ignore[method-assign]
    try:
        yield
    finally:
        Meter.stage = plain  # type: ignore[method-assign]


def gaps(span: Span, busy: Iterable[Span]) -> list[float]:
    """Microseconds within a span that none of the others covers, in a row each."""
    found, at = [], span[0]
    for begin, end in sorted(busy):
        if end <= at:
            continue
        if begin >= span[1]:
            break
        if begin > at:
            found.append(begin - at)
        at = end
    return [*found, span[1] - at] if at < span[1] else found


def spans_of(trace: Path) -> tuple[dict[str, list[Span]], list[Span]]:
    """The stages by name, and what operators and kernels ran."""
    stages: dict[str, list[Span]] = {}
    busy = []
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("ph") != "X":
            continue
        span = event["ts"], event["ts"] + event["dur"]
        if event["name"].startswith(MARK):
            stages.setdefault(event["name"].removeprefix(MARK), []).append(span)
        elif event.get("cat") in ("cpu_op", "kernel", "gpu_memcpy", "gpu_memset"):
            busy.append(span)
    return stages, busy


def main(
    name: Annotated[
        str, typer.Argument(help="As of make_checkpoint.py.")
    ] = "tinyllama-1.1b-4-blocks",
    samples: int = 4,
    length: int = 512,
    options: Annotated[str, typer.Option(help="More of the job.")] = "--repair ridge",
    device: str = "cpu",
    trace: Annotated[Path, typer.Option(help="File to write.")] = TRACE,
) -> None:
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device != "cpu" else []
    trace.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        source = make(name, Path(work) / "source", device)
        asked = [str(source), f"{work}/out", "--keep", KEEP, "--device", device, "--no-verify"]
        asked += ["--calibration", "stdlib", "--evaluation", "none", *options.split()]
        asked += ["--samples", f"{samples}", "--length", f"{length}"]
        with marked(), redirect_stdout(sys.stderr), profile(activities=activities) as profiled:
            if code := run(app, asked):
                raise SystemExit(code)
        profiled.export_chrome_trace(str(trace))
    blocks = shape(name)["num_hidden_layers"]
    table = Table(title=f"{name}, {samples} x {length} tokens, {device}, torch {torch.__version__}")
    for column in ("stage", "seconds", "nothing runs", "longest gap, of a block"):
        table.add_column(column, justify="right")
    stages, busy = spans_of(trace)
    for stage in STAGES:
        found = [gap for span in stages.get(stage, []) for gap in gaps(span, busy)]
        whole = sum(end - begin for begin, end in stages.get(stage, []))
        if whole:
            longest = max(found, default=0) / (whole / blocks)
            table.add_row(
                stage, f"{whole / 1e6:.2f}", f"{sum(found) / whole:.1%}", f"{longest:.2f}"
            )
    Console().print(table)
    print(trace)


if __name__ == "__main__":
    typer.run(main)
