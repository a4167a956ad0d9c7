"""Slices of large models: how a job grows with blocks, tokens and width, and what the whole model takes.

    python bench/run_shapes.py llama-7b llama-13b [--blocks 2] [--samples 4]
    python bench/run_shapes.py llama-70b llama-405b --blocks 1 --options "--repair none"
    python bench/run_shapes.py tinyllama-1.1b --whole

Of every shape three random slices are cut to 0.7: of so many blocks on so many tokens, of twice the
blocks, and of twice the tokens. Printed, and written to bench/results/: seconds of each stage, bytes
read from the disk (the source is not in the system's cache before) and written, peak memory, and the
ratio of the time to the floor: transformers' own forward of the same tokens, the source read and written
once. From these

    exponents   log2 of the growth of a stage's time, and of the memory, where blocks or tokens double
    whole       the model with all its blocks: what is outside them once, and its blocks as the three
                slices tell, beside what one run of the whole takes where --whole asks for it
"""

import json
import math
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from make_checkpoint import make, shape
from run_whole import copy_seconds, plain_forward

from compressor.writing.record import versions

KEEP = "0.7"
WIDTH = 130
DEFAULT = 128 * 512  # calibration tokens of `compress`
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One job. stages, forecast: seconds by stage, measured and said before; floor: seconds; the rest
    bytes.
    """

    shape: str
    blocks: int
    samples: int
    length: int
    stages: dict[str, float]
    forecast: dict[str, float | None]
    seconds: float
    floor: float
    peak: int
    read: int
    written: int

    @property
    def tokens(self) -> int:
        return self.samples * self.length

    @property
    def ratio(self) -> float:
        return self.seconds / self.floor


def out_of_cache(folder: Path) -> None:
    """The next reader of these files reads the disk."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watched(command: list[str]) -> tuple[dict, float, int, int]:
    """What a command prints as JSON, its seconds, and the bytes it read from the disk and wrote."""
    begun, moved = time.monotonic(), (0, 0)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        running = psutil.Popen(command, stdout=out, stderr=err)
        while running.poll() is None:
            try:
                moved = running.io_counters()[2:4]
            except psutil.Error:  # it ended between the two calls
                break
            time.sleep(0.02)
        seconds = time.monotonic() - begun
        for stream in (out, err):
            stream.seek(0)
        if running.wait():
            raise SystemExit(err.read())
        return json.loads(out.read()), seconds, *moved


def run(name: str, blocks: int, samples: int, length: int, options: list[str], device: str) -> Run:
    """The job on a slice that is made for it, and its floor."""
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = work / "source"
    make(f"{name}-{blocks}-blocks", source, device)
    text = ["--calibration", "stdlib", "--evaluation", "none", "--no-verify", "--device", device]
    text += ["--samples", f"{samples}", "--length", f"{length}"]
    command = [str(Path(sys.executable).with_name("compress")), str(source), str(work / "out")]
    out_of_cache(source)
    told, seconds, read, written = watched([*command, "--keep", KEEP, "--json", *text, *options])
    floor = plain_forward(source, samples, length, device) + copy_seconds(source, work)
    shutil.rmtree(work)
    return Run(
        shape=name,
        blocks=blocks,
        samples=samples,
        length=length,
        stages=told["seconds"],
        forecast=told["forecast"]["seconds"],
        seconds=seconds,
        floor=floor,
        peak=told["peak_rss_bytes"],
        read=read,
        written=written,
    )


def growth(less: Run, more: Run) -> dict[str, float]:
    """log2 of what became of each stage's seconds and of the memory; of what takes a while."""
    stages = [stage for stage, seconds in less.stages.items() if seconds > 0.2]
    found = {stage: math.log2(more.stages[stage] / less.stages[stage]) for stage in stages}
    return found | {"memory": math.log2(more.peak / less.peak)}


def whole(runs: list[Run], blocks: int, tokens: int) -> float:
    """Seconds of all stages with all blocks on so many tokens, from three slices: what is outside the
    blocks, and of each block what it takes by itself and for every token.
    """
    return sum(whole_stage(stage, runs, blocks, tokens) for stage in runs[0].stages)


def whole_stage(stage: str, runs: list[Run], blocks: int, tokens: int) -> float:
    base, deeper, longer = (run.stages[stage] for run in runs)
    a_block = max(0, deeper - base) / (runs[1].blocks - runs[0].blocks)
    a_token = max(0, longer - base) / (runs[2].tokens - runs[0].tokens) / runs[0].blocks
    outside = max(0, base - runs[0].blocks * a_block)
    return outside + blocks * (a_block + a_token * (tokens - runs[0].tokens))


def predictions(runs: list[Run], blocks: int) -> dict[str, float]:
    """By tokens: the longer text's, and the default of `compress`."""
    return {
        f"{tokens:,} tokens": whole(runs, blocks, tokens) for tokens in (runs[2].tokens, DEFAULT)
    }


def table(runs: list[Run]) -> Table:
    shown = Table(title=f"--keep {KEEP}, bfloat16: seconds, and GB")
    names = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    columns = [
        "shape",
        "blocks",
        "tokens",
        *names,
        "all",
        "floor",
        "ratio",
        "memory",
        "read",
        "written",
    ]
    for column in columns:
        shown.add_column(column, justify="right")
    for run in runs:
        seconds = [run.stages.get(name, 0) for name in names] + [run.seconds, run.floor]
        sizes = [f"{size / 1e9:.2f}" for size in (run.peak, run.read, run.written)]
        counts = run.shape, f"{run.blocks}", f"{run.tokens:,}"
        times = [f"{each:.1f}" for each in seconds]
        shown.add_row(*counts, *times, f"{run.ratio:.2f}", *sizes)
    return shown


def main(
    shapes: Annotated[list[str], typer.Argument(help="As of make_checkpoint.py.")],
    blocks: Annotated[int, typer.Option(help="Of the smaller slice.")] = 2,
    samples: Annotated[int, typer.Option(help="Sequences of the shorter text.")] = 4,
    length: int = 512,
    options: Annotated[str, typer.Option(help="More of the job.")] = "--repair ridge",
    device: str = "cpu",
    measure_whole: Annotated[
        bool, typer.Option("--whole", help="Also all blocks at once.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    asked, console = shlex.split(options), Console(width=WIDTH)
    sizes = (blocks, samples), (2 * blocks, samples), (blocks, 2 * samples)
    found, rows = [], {}
    for name in shapes:
        all_blocks = shape(name)["num_hidden_layers"]
        runs = [run(name, *size, length, asked, device) for size in sizes]
        row: dict = {
            "runs": [asdict(run) | {"tokens": run.tokens, "ratio": run.ratio} for run in runs]
        }
        row["exponents"] = {"blocks": growth(*runs[:2]), "tokens": growth(runs[0], runs[2])}
        row["whole"] = {"blocks": all_blocks, "predicted": predictions(runs, all_blocks)}
        if measure_whole:
            runs.append(run(name, all_blocks, 2 * samples, length, asked, device))
            row["whole"] |= {"measured": sum(runs[-1].stages.values()), "peak": runs[-1].peak}
        rows[name], found = row, found + runs
    console.print(table(found))
    for name, row in rows.items():
        for what, grown in row["exponents"].items():
            each = ", ".join(f"{stage} {power:.2f}" for stage, power in grown.items())
            console.print(f"{name}: exponents in {what}: {each}")
        told = ", ".join(f"{for_}: {s:,.0f} s" for for_, s in row["whole"]["predicted"].items())
        more = f"; measured {row['whole']['measured']:,.0f} s" if measure_whole else ""
        console.print(f"{name}, {row['whole']['blocks']} blocks, predicted: {told}{more}")
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"shapes-{'-'.join(shapes)}-{device}-{date.today()}.json"
    about = {"options": options, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    about |= {"versions": versions(), "date": str(date.today()), "keep": KEEP}
    file.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
