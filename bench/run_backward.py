"""The streamed scores beside an ordinary pass, on a random checkpoint of a real shape.

    python bench/run_backward.py [tinyllama-1.1b] [--samples 8] [--length 512] [--device cpu]

Scores the checkpoint (`--method`, hywia by default) and runs transformers' own forward and backward of
the same sequences, one at a time, with the gradients of all parameters, each in a fresh process.
Prints, and writes to bench/results/, the seconds after loading, their ratio beside the goal of 1.7
(recomputation alone is 4/3) plus reading the weights twice, and both peaks of resident memory. A method
without gradients (`--method llm-bip`) is held against the forward of the same batches, and to 1.3.
`--only-streamed` leaves the ordinary backward out, for shapes it has no memory for.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from measure import found_by

from compressor.scoring.methods import METHODS
from compressor.writing.record import versions

RESULTS = Path(__file__).parent / "results"
DEFAULT = "hywia"
GOAL, GOAL_FORWARD = 1.7, 1.3
COMMON = """
import json, sys, time, torch
from compressor.job.progress import Meter
from compressor.model.checkpoint import Checkpoint
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
source, samples, length, device, method = sys.argv[1:]
checkpoint = Checkpoint(source)
tokens = tokenize(read_text("stdlib"), checkpoint.tokenizer(), int(length), int(samples))
few = [] if device == "cpu" else tokens.sequences[:1]  # a GPU's kernels are compiled and loaded first
def now():
    if device != "cpu":
        torch.cuda.synchronize()
    return time.monotonic()
"""
STREAMED = """
from dataclasses import replace
from compressor.model.stream import BlockStream
from compressor.scoring.score import score
with Meter() as meter:
    for ids in few:
        first = replace(tokens, sequences=[ids])
        score(checkpoint, method, None, first, BlockStream(checkpoint, device))
    begun = now()
    score(checkpoint, method, None, tokens, BlockStream(checkpoint, device))
    seconds = now() - begun
"""
ORDINARY = """
from dataclasses import replace
from compressor.scoring.methods import METHODS
from transformers import AutoModelForCausalLM
with Meter() as meter:
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval().to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    def backward(sequences):
        for ids in sequences:
            ids = ids[None].to(device)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()
    @torch.no_grad()
    def forward(sequences):
        for batch in replace(tokens, sequences=sequences).batches():
            model.base_model(input_ids=batch.ids.to(device), use_cache=False)
    run = forward if METHODS[method].observe is None else backward
    run(few)
    begun = now()
    run(tokens.sequences)
    seconds = now() - begun
"""
PRINTED = """
cuda = torch.cuda.max_memory_allocated() if device != "cpu" else 0
print(json.dumps({"seconds": seconds, "peak_rss_bytes": meter.peak_rss, "peak_gpu_bytes": cuda}))
"""


def reading_seconds(source: Path) -> float:
    """Seconds to read all weights once."""
    begun = time.monotonic()
    for file in source.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
    return time.monotonic() - begun


def main(
    shape: Annotated[
        str, typer.Argument(help="llama-6m, tinyllama-1.1b or llama-7b")
    ] = "tinyllama-1.1b",
    samples: int = 8,
    length: int = 512,
    device: str = "cpu",
    method: str = DEFAULT,
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoint is or is made.")] = None,
    only_streamed: bool = False,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = folder or work / shape
    maker = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, str(maker), shape, str(source)], check=True)
    asked = (source, samples, length, device, method)
    figures = {
        "shape": shape,
        "sequences": samples,
        "length": length,
        "method": method,
        "dtype": "bfloat16",
        "device": device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "date": str(date.today()),
        "reading_seconds": reading_seconds(source),
        "streamed": found_by(COMMON + STREAMED + PRINTED, *asked),
    }
    title = f"{shape}, {samples} x {length} tokens, bfloat16, {device}, {method}"
    table = Table(title=title)
    for column in ("", "seconds", "peak memory, MB", "peak GPU memory, MB"):
        table.add_column(column, justify="right")
    rows = {"streamed": figures["streamed"]}
    if not only_streamed:
        rows["ordinary"] = figures["ordinary"] = found_by(COMMON + ORDINARY + PRINTED, *asked)
    for name, found in rows.items():
        sizes = (f"{found[k] / 1e6:,.0f}" for k in ("peak_rss_bytes", "peak_gpu_bytes"))
        table.add_row(name, f"{found['seconds']:.1f}", *sizes)
    if not only_streamed:
        backward = METHODS[method].observe is not None
        goal = (GOAL if backward else GOAL_FORWARD) * rows["ordinary"]["seconds"]
        goal += (1 + backward) * figures["reading_seconds"]
        ratio = rows["streamed"]["seconds"] / rows["ordinary"]["seconds"]
        figures |= {"goal_seconds": goal, "ratio": ratio}
        table.caption = f"streamed / ordinary {ratio:.2f}; the goal is {goal:.1f} seconds"
    Console().print(table)
    results.mkdir(parents=True, exist_ok=True)
    name = shape if method == DEFAULT else f"{shape}-{method}"
    path = results / f"backward-{name}-{device}-{date.today()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    typer.run(main)
