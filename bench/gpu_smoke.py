"""Every op on a few shapes against eager PyTorch: what a GPU run does before all else.

    python bench/gpu_smoke.py --device cuda --shapes 64x96,4096x4096

The ops are dealt out to as many processes as there are cores, so that one which reads where nothing is
takes no other along. Before them the machine's ceilings are measured, which all figures are read with.
"""

import subprocess
import sys
import time
from os import cpu_count
from pathlib import Path
from typing import Annotated

import torch
import typer

from compressor.kernels.bench.cases import CASES

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from gpu_rows import put, short
from measure import machine


def main(
    device: str = "cuda",
    shapes: str = "64x96,4096x4096",
    ops: Annotated[str, typer.Option(help="These, in this process.")] = "",
) -> None:
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes.split(",")]
    if ops:
        wrong = [op for op in ops.split(",") for size in sizes if not agrees(op, size, device)]
        raise SystemExit(f"not as the reference: {', '.join(wrong)}" if wrong else 0)
    begun, found = time.perf_counter(), machine(device)
    put("machine", time.perf_counter() - begun, **found)
    count = min(len(CASES), cpu_count() or 1) if device != "cpu" else 1
    command = [sys.executable, __file__, "--device", device, "--shapes", shapes, "--ops"]
    dealt = [",".join([*CASES][number::count]) for number in range(count)]
    running = {these: subprocess.Popen([*command, these]) for these in dealt}
    failed = [these for these, process in running.items() if process.wait()]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def agrees(op: str, size: tuple[int, ...], device: str) -> bool:
    """Whether this package's output is that of the reference, on normal numbers."""
    torch.manual_seed(0)
    begun, name = time.perf_counter(), f"{op} {'x'.join(map(str, size))}"
    try:
        case = CASES[op].case(size, device)
        case.compare(case.providers["ours"](), case.providers["eager"]())
        if device != "cpu":
            torch.cuda.synchronize()
    except Exception as error:  # whatever it is: the others are still to be seen
        print(f"{name}: {error}")
        put(name, time.perf_counter() - begun, "failed", why=short(str(error)))
        return False
    print(f"{name}: as the reference")
    put(name, time.perf_counter() - begun)
    return True


if __name__ == "__main__":
    typer.run(main)
