"""Whether a job comes out the same with any number of threads, and what that costs.

    python bench/threads.py SOURCE [--calibration TEXT] [--threads 1 2 4] [--keep 0.85]

runs `compress` once with each number of threads and prints what differs from the first: units of the
plan, tensors of the result; then the share of one more run's processor time (on one thread) that is
spent in factorisations, which have one thread however many there are: all that more threads lose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

import compressor
from compressor.solvers import elimination, fixed_order, ridge


def ran(arguments: list[str], out: Path, threads: int) -> float:
    """Seconds of a job on so many threads, more than there are cores, too."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_DYNAMIC": "FALSE"}
    command = [sys.executable, "-m", "compressor", "compress", *arguments]
    began = time.perf_counter()
    subprocess.run([*command[:5], str(out), *command[5:]], env=environment, check=True)
    return time.perf_counter() - began


def differences(one: Path, other: Path) -> str:
    plans = [
        json.loads((p / "compression.json").read_text())["plan"]["blocks"] for p in (one, other)
    ]
    units = sum(
        len({*first[group]} ^ {*second[group]})
        for first, second in zip(*plans, strict=True)
        for group in first
    )
    ours, theirs = (load_file(p / "model.safetensors") for p in (one, other))
    tensors = [n for n, t in ours.items() if n not in theirs or not torch.equal(t, theirs[n])]
    return f"{units} units of the plan, {len(tensors)} of {len(ours)} tensors"


def share_of_factorisations(source: str, out: Path, **options) -> float:
    """Of the processor time of a job on one thread."""
    spent, plain = [0.0], fixed_order.one_thread

    @contextmanager
    def timed(matrix: torch.Tensor):
        began = time.process_time()
        with plain(matrix):
            yield
        spent[0] += time.process_time() - began

    for module in (fixed_order, ridge, elimination):
        module.one_thread = timed
    torch.set_num_threads(1)
    began = time.process_time()
    compressor.compress(source, out, **options)
    return spent[0] / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--calibration", default="stdlib")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keep", type=float, default=0.85)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    asked = parser.parse_args()
    options = {n: getattr(asked, n) for n in ("keep", "calibration", "samples", "length")}
    options["evaluation"] = "none"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / str(asked.threads[0])
        for threads in asked.threads:
            out = Path(folder) / str(threads)
            seconds = ran([asked.source, *words, "--no-verify"], out, threads)
            print(
                f"{threads} threads: {seconds:.0f} s; differ: {differences(first, out)}", flush=True
            )
        given = {**options, "verify": False}
        share = share_of_factorisations(asked.source, Path(folder) / "timed", **given)
        print(f"factorisations: {share:.2%} of the processor time on one thread")


if __name__ == "__main__":
    main()
