"""Whole runs of `compress` on random checkpoints of real shapes: peak memory and wall time.

    python bench/run_whole.py [tinyllama-1.1b] [--samples 16] [--length 256] [--device cpu] [--method M]

Prints, and writes to bench/results/:
    memory   peak resident memory of `compress` and its children, beside the bound (two blocks,
             embedding, head, activations, 700 MB; a gradient where the method needs them; where a
             repair refits weights, what `repair_bytes` says)
    time     wall time without verification, beside the plain transformers forward of the same
             tokens plus reading and writing the files once, measured in the same run
    ratios   three ratios from one score pass, beside one ratio, writing apart
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

from compressor.config.repair import KINDS
from compressor.model.checkpoint import Checkpoint
from compressor.scoring.methods import DEFAULT_METHOD, METHODS
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.writing.record import versions

KEEP = 0.7
BASE = 700e6  # interpreter, torch, transformers and allocator slack
RESULTS = Path(__file__).parent / "results"


def compress(source: Path, dest: Path, *options: str) -> dict:
    """One run in a fresh process; its JSON (of the last ratio) and the wall time seen from outside."""
    shutil.rmtree(dest, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("compress")), str(source), str(dest), "--json"]
    begun = time.monotonic()
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    found = found[-1] if isinstance(found, list) else found
    return found | {"wall": time.monotonic() - begun}


def plain_forward(source: Path, samples: int, length: int, device: str) -> float:
    """Seconds of transformers' own forward of the same tokens in the same batches, after loading."""
    code = f"""
import time, torch
from transformers import AutoModelForCausalLM
from compressor.model.checkpoint import Checkpoint
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
checkpoint = Checkpoint({str(source)!r})
tokens = tokenize(read_text("stdlib"), checkpoint.tokenizer(), {length}, {samples})
model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="auto").eval().to({device!r})
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
def run(batches):
    for batch in batches:
        model.base_model(input_ids=batch.ids.to({device!r}), use_cache=False)
    if {device!r} != "cpu":
        torch.cuda.synchronize()
with torch.no_grad():
    batches = list(tokens.batches())
    if {device!r} != "cpu":
        run(batches[:1])  # its kernels are loaded in the first call
    begun = time.monotonic()
    run(batches)
print(time.monotonic() - begun)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def copy_seconds(source: Path, folder: Path) -> float:
    """Seconds to read the weights once and write them once."""
    begun = time.monotonic()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, folder / file.name)
        with (folder / file.name).open("rb") as stream:
            os.fsync(stream.fileno())
    return time.monotonic() - begun


def memory_bound(checkpoint: Checkpoint, tokens: int, method: str, repair: str) -> float:
    """Two blocks, embedding, head and activations; for a backward what enters every block and one
    gradient; for a repair `repair_bytes`.
    """
    block = sum(t.end - t.begin for n, t in checkpoint.tensors.items() if ".layers.0." in n)
    outer = sum(
        checkpoint.tensors[n].end - checkpoint.tensors[n].begin for n in checkpoint.outer_tensors()
    )
    backward = METHODS[method].observe is not None
    kind = KINDS[repair]
    states = checkpoint.blocks + 3 if backward else 6 if kind else 2
    refit = repair_bytes(checkpoint, block, kind.refined) if kind and kind.weights else 0
    activations = states * tokens * checkpoint.hidden_size * checkpoint.dtype.itemsize
    gradient = backward * max(t.end - t.begin for t in checkpoint.tensors.values())
    return 2 * block + outer + activations + gradient + refit + BASE


def repair_bytes(checkpoint: Checkpoint, block: int, refined: bool) -> float:
    """The most of what a repair needs one after the other, all in float32: for the selection three Gram
    matrices of the FFN; for down_proj's regression two of the channels kept, a factor, and five matrices
    like it; for the training the weights of a cut block, two moments and the largest gradient.
    """
    width = checkpoint.config["intermediate_size"]
    kept, like_down = KEEP * width, KEEP * width * checkpoint.hidden_size
    trained = KEEP * block / checkpoint.dtype.itemsize
    parts = [3 * width**2, 3 * kept**2 + 5 * like_down, refined * (3 * trained + like_down)]
    return 4 * max(parts)


def main(
    shape: Annotated[
        str, typer.Argument(help="llama-6m, tinyllama-1.1b or llama-7b")
    ] = "tinyllama-1.1b",
    samples: int = 16,
    length: int = 256,
    device: str = "cpu",
    method: str = DEFAULT_METHOD,
    repair: str = "none",
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoint is or is made.")] = None,
    only_memory: Annotated[bool, typer.Option(help="One verified run, nothing else.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = folder or work / shape
    maker = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, str(maker), shape, str(source)], check=True)
    checkpoint = Checkpoint(source)
    count = tokenize(read_text("stdlib"), checkpoint.tokenizer(), length, samples).tokens
    options = ["--samples", str(samples), "--length", str(length), "--device", device]
    options += ["--method", method, "--repair", repair]
    options += ["--calibration", "stdlib", "--evaluation", "none"]
    whole = compress(source, work / "out", "--keep", str(KEEP), *options)
    bound = memory_bound(checkpoint, count, method, repair)
    figures = {
        "shape": shape,
        "method": method,
        "repair": repair,
        "tokens": count,
        "dtype": str(checkpoint.dtype),
        "device": device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "date": str(date.today()),
        "peak_rss_bytes": whole["peak_rss_bytes"],
        "peak_gpu_bytes": whole["peak_gpu_bytes"],
        "memory_bound_bytes": int(bound),
        "seconds_verified": whole["wall"],
        "stages": whole["seconds"],
    }
    rows = [
        ("peak memory, children included", whole["peak_rss_bytes"] / 1e6, bound / 1e6, "MB"),
    ]
    if device != "cpu":
        rows.append(("peak GPU memory", whole["peak_gpu_bytes"] / 1e6, bound / 1e6, "MB"))
    if not only_memory:
        one = compress(source, work / "out", "--keep", str(KEEP), "--no-verify", *options)
        three = compress(
            source, work / "out", "--keep", "0.9", "0.8", "0.7", "--no-verify", *options
        )
        plain = plain_forward(source, samples, length, device)
        copy = copy_seconds(source, work)
        figures |= {
            "seconds": one["wall"],
            "seconds_plain_forward": plain,
            "seconds_copy": copy,
            "seconds_three": three["wall"] - three["seconds"]["write"],
            "seconds_one": one["wall"] - one["seconds"]["write"],
        }
        rows += [
            ("wall time", one["wall"], 1.5 * plain + copy, "s"),
            ("three ratios", figures["seconds_three"], 1.3 * figures["seconds_one"], "s"),
        ]
    table = Table(title=f"{shape}, {count:,} tokens, {checkpoint.dtype}, {device}")
    for column in ("", "measured", "goal", "unit", "measured / goal"):
        table.add_column(column, justify="right")
    for name, value, goal, unit in rows:
        table.add_row(name, f"{value:,.1f}", f"{goal:,.1f}", unit, f"{value / goal:.2f}")
    Console().print(table)
    results.mkdir(parents=True, exist_ok=True)
    name = shape if method == DEFAULT_METHOD else f"{shape}-{method}"
    name = name if repair == "none" else f"{name}-{repair}"
    path = results / f"whole-{name}-{device}-{date.today()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    typer.run(main)
