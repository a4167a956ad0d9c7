"""What it costs to keep activations in files, where memory has no room for them.

    python bench/run_spill.py [tinyllama-1.1b-4-blocks] [--method llm-bip] [--samples 32] [--length 512]

A random checkpoint of a real model's shapes is scored three ways, each in a fresh process and in turn:

    memory     hidden states stay in memory
    files      each batch's are written to a file, and read from it for the next block
    disk       the same, and every file leaves the system's cache as soon as it is written: what the disk
               itself costs, where other programs want that memory

Printed, and written to bench/results/: seconds of the scores, the median of `--repeats`, and the ratio
to `memory`, which is to be at most 1.25. The scores of `llm-bip` are the pass that computes least for
what it keeps: selection, repair and training compute many times as much for the same files.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from measure import found_by

from compressor.scoring.methods import DEFAULT_METHOD
from compressor.writing.record import versions

GOAL = 1.25
WAYS = ("memory", "files", "disk")
RESULTS = Path(__file__).parent / "results"
SCORED = """
import json, os, sys, time
from pathlib import Path
from compressor.model.activations import Activations
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
source, folder, method, samples, length, way = sys.argv[1:]
written, put = [0], Activations.put
def counted(self, batch, hidden):
    put(self, batch, hidden)
    if self.folder is not None:
        written[0] += self._file(batch).stat().st_size
        if way == "disk":
            with self._file(batch).open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
Activations.put = counted
checkpoint = Checkpoint(source)
tokens = tokenize(read_text("stdlib"), checkpoint.tokenizer(), int(length), int(samples))
place = None if way == "memory" else Path(folder)
begun = time.monotonic()
score(checkpoint, method, None, tokens, BlockStream(checkpoint, "cpu", None, place))
print(json.dumps({"seconds": time.monotonic() - begun, "written": written[0]}))
"""


def main(
    shape: Annotated[
        str, typer.Argument(help="As of make_checkpoint.py.")
    ] = "tinyllama-1.1b-4-blocks",
    method: str = DEFAULT_METHOD,
    samples: int = 32,
    length: int = 512,
    repeats: int = 3,
    folder: Annotated[Path | None, typer.Option(help="On the disk to measure.")] = None,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
    source = work / shape
    maker = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, str(maker), shape, str(source)], check=True)
    asked = source, work, method, samples, length
    runs = [{way: found_by(SCORED, *asked, way) for way in WAYS} for _ in range(repeats)]
    seconds = {way: statistics.median(run[way]["seconds"] for run in runs) for way in WAYS}
    rows = {way: {"seconds": s, "ratio": s / seconds["memory"]} for way, s in seconds.items()}
    figures = {
        "shape": shape,
        "method": method,
        "samples": samples,
        "length": length,
        "repeats": repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "date": str(date.today()),
        "written_bytes": runs[0]["files"]["written"],
        "ways": rows,
    }
    table = Table(title=f"{shape}, {method}, {samples} x {length} tokens, median of {repeats}")
    for column in ("activations in", "seconds", f"to memory (goal {GOAL})"):
        table.add_column(column, justify="right")
    for way, row in rows.items():
        table.add_row(way, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}")
    table.caption = f"{figures['written_bytes'] / 1e6:,.0f} MB were written"
    Console().print(table)
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"spill-{shape}-cpu-{date.today()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    typer.run(main)
