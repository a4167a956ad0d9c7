"""Several ranks of one thread each against one process of one thread: seconds of a job's shared stages.

    python bench/run_ranks.py [tinyllama-1.1b-4-blocks] [--ranks 2] [--samples 32] [--length 512]

Both cut a random checkpoint of a real model's shapes to 0.7 with the method and selection of `compress`
and --repair ridge, on a CPU with gloo, and measure nothing afterwards. Printed, and written to
bench/results/: the seconds of `score`, `select` and `repair` of both, how many times as fast the ranks
are, and the largest relative distance of the tensors they write (|a - b| / |a|).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.model.checkpoint import Checkpoint
from compressor.writing.record import versions

RESULTS = Path(__file__).parent / "results"
STAGES = ("score", "select", "repair")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")


def stages(ranks: int, source: Path, dest: Path, *options: str) -> dict[str, float]:
    """The seconds of every stage, as the first rank tells them."""
    launcher = [sys.executable] if ranks == 1 else [*TORCHRUN, str(ranks)]
    command = [*launcher, "-m", "compressor", "compress", str(source), str(dest), "--json"]
    done = subprocess.run(
        [*command, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["seconds"]


def distance(one: Path, other: Path) -> float:
    """The largest of the tensors' |a - b| / |a|."""
    first, second = Checkpoint(one), Checkpoint(other)
    largest = 0.0
    for name in first.tensors:
        a, b = (source.read([name])[name].double() for source in (first, second))
        largest = max(largest, ((a - b).norm() / a.norm()).item())
    return largest


def main(
    shape: Annotated[
        str, typer.Argument(help="As of make_checkpoint.py.")
    ] = "tinyllama-1.1b-4-blocks",
    ranks: int = 2,
    samples: int = 32,
    length: int = 512,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = work / shape
    maker = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, str(maker), shape, str(source)], check=True)
    options = ["--keep", "0.7", "--repair", "ridge", "--no-verify", "--device", "cpu"]
    options += ["--calibration", "stdlib", "--evaluation", "none"]
    options += ["--samples", str(samples), "--length", str(length)]
    seconds = {n: stages(n, source, work / f"{n}", *options) for n in (1, ranks)}
    rows = {
        stage: {
            "one process": seconds[1][stage],
            "ranks": seconds[ranks][stage],
            "faster": seconds[1][stage] / seconds[ranks][stage],
        }
        for stage in STAGES
    }
    figures = {
        "shape": shape,
        "ranks": ranks,
        "threads": 1,
        "samples": samples,
        "length": length,
        "dtype": str(Checkpoint(source).dtype),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "date": str(date.today()),
        "stages": rows,
        "distance": distance(work / "1", work / f"{ranks}"),
    }
    table = Table(title=f"{shape}, {samples} x {length} tokens, {ranks} ranks of one thread, gloo")
    for column in ("stage", "one process, s", "ranks, s", "times as fast"):
        table.add_column(column, justify="right")
    for stage, row in rows.items():
        values = row["one process"], row["ranks"], row["faster"]
        table.add_row(stage, *(f"{value:,.2f}" for value in values))
    Console().print(table)
    Console().print(f"The tensors differ by {figures['distance']:.1e} at most.")
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"ranks-{shape}-{ranks}-cpu-{date.today()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    typer.run(main)
