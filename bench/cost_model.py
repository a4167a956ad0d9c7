"""What a job takes on given hardware, counted: no weight is made, and no step is timed.

    python bench/cost_model.py llama-70b llama-405b [--device h200] [--devices 8] [--keep 0.7]
    python bench/cost_model.py --beside bench/results/shapes-llama-7b-cpu-2026-11-30.json

The stages are those of the forecast that every job begins with (`compressor/job/forecast`), which times
single steps on a block. Here a step is its FLOPs over the rate of products in its dtype, or its bytes
over the bandwidth of memory, whichever is more. A stage that passes through the model takes at least the
source's bytes over the disk's rate for each pass. Several devices share them as ranks do: tokens,
blocks to eliminate in, lambdas and outputs of regressions (docs/scale.md).

Rates are data sheets' times EFFICIENCY for products, or, for `cpu` and `cuda`, measured in this run.
`--beside` counts the runs that `run_shapes.py` has measured, on this machine, and prints both.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from make_checkpoint import make

from compressor.analysis.estimate.machine import copy_bandwidth, multiply_rate
from compressor.analysis.estimate.roofline import DEVICES, is_here
from compressor.config.job import job_config
from compressor.job.asked import check_asked
from compressor.job.checks import solved_results
from compressor.job.forecast.stages import BACKWARD, Load, stages
from compressor.model.checkpoint import Checkpoint
from compressor.model.units import BlockGeometry
from compressor.repairing.refine import STEP_TOKENS
from compressor.scoring.methods import METHODS
from compressor.scoring.selection import FINE_CHANNELS
from compressor.solvers.ridge import GRID, SKETCH
from compressor.text.tokens import TokenSet

EFFICIENCY = 0.5  # of a data sheet's rate that large products reach; by its rules, not measured
DISK = 2e9  # bytes a second
FLOAT64 = {"h200": 67e12, "a100": 19.5e12}  # data sheets, tensor cores
LAUNCHED = 3e-6  # seconds between two kernels that follow each other on a GPU
# Over files of the source's size, at most.
PASSES = {"score": 1, "select": 1, "repair": 1, "verify": 2}
ADAM = 40  # bytes that a step of a training moves of every weight: weight, gradient and two moments


@dataclass(frozen=True)
class Hardware:
    """rates: FLOPs a second by dtype; bandwidth, disk: bytes a second; devices: how many compute."""

    name: str
    rates: dict[torch.dtype, float]
    bandwidth: float
    devices: int
    disk: float
    launched: float

    @classmethod
    def of(cls, name: str, devices: int, disk: float) -> "Hardware":
        single, double = torch.float32, torch.float64
        if is_here(name):
            rates = {d: multiply_rate(name, d, repeats=3) for d in (torch.bfloat16, single, double)}
            launched = LAUNCHED if name.startswith("cuda") else 0.0
            return cls(name, rates, copy_bandwidth(name), devices, disk, launched)
        sheet = DEVICES[name]
        rates = {d: EFFICIENCY * rate for d, rate in sheet.peak.items()}
        rates[double] = EFFICIENCY * FLOAT64.get(name, sheet.peak[single] / 64)
        return cls(name, rates, sheet.bandwidth, devices, disk, LAUNCHED)

    def seconds(self, flops: float, moved: float = 0, dtype: torch.dtype = torch.bfloat16) -> float:
        return max(flops / self.rates[dtype], moved / self.bandwidth)


@dataclass(frozen=True)
class Counted:
    """The steps of `compressor/job/forecast/samples.py` on a block, in seconds, by counting."""

    checkpoint: Checkpoint
    hardware: Hardware
    length: int

    @property
    def geometry(self) -> BlockGeometry:
        return BlockGeometry.of(self.checkpoint, self.checkpoint.blocks // 2)

    @property
    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(dtype=self.checkpoint.dtype)

    @property
    def weights(self) -> int:
        block = self.checkpoint.block_entries(self.checkpoint.blocks // 2)
        return sum(entry.numel for entry in block.values())

    # -- a token, of which every device has its part ---------------------------------------------

    def shared(self, flops: float, dtype: torch.dtype = torch.bfloat16) -> float:
        return self.hardware.seconds(flops, dtype=dtype) / self.hardware.devices

    def forward(self) -> float:
        return self.shared(2 * self.weights + 2 * self.length * self.checkpoint.hidden_size)

    def scored(self, method: str, mode: str | None) -> float:
        return (BACKWARD if METHODS[method].observe else 1) * self.forward()

    def trained(self, ffn_alone: bool = False) -> float:
        """A step is one sequence of the default length: the devices take turns."""
        part = 2 / 3 if ffn_alone else 1
        step = self.hardware.seconds(0, ADAM * self.weights) / STEP_TOKENS
        return part * (BACKWARD * self.forward() * self.hardware.devices + step)

    def summed(self, channels: int, outputs: int, dtype: torch.dtype = torch.float32) -> float:
        return self.shared(channels**2 + 2 * channels * outputs, dtype)

    def predicted(self) -> float:
        return self.shared(2 * self.checkpoint.vocabulary * self.checkpoint.hidden_size)

    def told_apart(self) -> float:
        return BACKWARD * self.predicted()

    # -- once a block -----------------------------------------------------------------------------

    def eliminated(self, channels: int, units: int) -> float:
        """An inverse, W^T W, and two matrices that are brought up to date as they become smaller."""
        dtype = torch.float64 if channels <= FINE_CHANNELS else torch.float32
        flops = (1 + 4 / 3) * channels**3 + 2 * channels**2 * self.checkpoint.hidden_size
        alone = self.hardware.seconds(flops, dtype=dtype) + units * self.hardware.launched
        return alone / self.hardware.devices

    def regressed(self, channels: int) -> float:
        """Factors and some candidates of the lambdas that each device tries; then one more factor, and
        its part of residuals and of what is returned.
        """
        hidden, devices = self.checkpoint.hidden_size, self.hardware.devices
        factor = channels**3 / 3
        tried = math.ceil(len(GRID) / devices) * (factor + 4 * channels**2 * min(SKETCH, hidden))
        whole = factor + 3 * 2 * channels**2 * hidden / devices
        return self.hardware.seconds(tried + whole, dtype=torch.float32)

    def widened(self) -> float:
        return self.hardware.seconds(0, 2 + 4)


def counted(
    name: str, hardware: Hardware, samples: int, length: int, options: dict
) -> dict[str, float]:
    """Seconds by stage of a job on a shape."""
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        source = make(name, Path(work) / "source", drawn=False)
        asked = {
            "calibration": "stdlib",
            "evaluation": "none",
            "samples": samples,
            "length": length,
        }
        config = check_asked(job_config(source, Path(work) / "out", **asked, **options))
        checkpoint = Checkpoint(source)
        tokens = TokenSet([torch.zeros(length, dtype=torch.int64)] * samples)
        sys.modules[stages.__module__].WRITTEN = hardware.disk  # it takes a slow one's
        load = Load(config, checkpoint, tokens, None, None, solved_results(config, checkpoint))
        found: dict[str, float] = {}
        for part in stages(load, Counted(checkpoint, hardware, length)):
            found[part.stage] = found.get(part.stage, 0) + (part.seconds or 0)
        read = checkpoint.bytes / hardware.disk
        found = {stage: max(s, PASSES.get(stage, 0) * read) for stage, s in found.items()}
        return found


def table(rows: Iterable[tuple[str, dict[str, float]]], title: str) -> Table:
    rows = list(rows)
    names = list(dict.fromkeys(stage for _, seconds in rows for stage in seconds))
    shown = Table(title=title)
    for column in ("", *names, "all"):
        shown.add_column(column, justify="right")
    for label, seconds in rows:
        values = [*(seconds.get(name, 0) for name in names), sum(seconds.values())]
        shown.add_row(label, *(f"{value:,.1f}" for value in values))
    return shown


def beside(file: Path, hardware: Hardware) -> Iterable[tuple[str, dict[str, float]]]:
    """What was measured of slices, and what is counted."""
    told = json.loads(file.read_text())
    for row in told["rows"].values():
        for run in row["runs"]:
            name = f"{run['shape']}-{run['blocks']}-blocks"
            kinds = dict(zip(*[iter(told["options"].split())] * 2, strict=True))
            options = {k.removeprefix("--").replace("-", "_"): v for k, v in kinds.items()}
            options |= {"keep": [float(told["keep"])], "verify": False}
            seconds = counted(name, hardware, run["samples"], run["length"], options)["seconds"]
            label = f"{name}, {run['tokens']:,} tokens"
            yield f"{label}, measured", {k: run["stages"][k] for k in seconds}
            yield f"{label}, counted", seconds


def main(
    shapes: Annotated[list[str] | None, typer.Argument(help="As of make_checkpoint.py.")] = None,
    device: Annotated[str, typer.Option(help="h200, a100, rtx4090, cpu or cuda.")] = "h200",
    devices: Annotated[int, typer.Option(help="How many.")] = 1,
    disk_rate: Annotated[float, typer.Option(help="Bytes a second.")] = DISK,
    keep: float = 0.7,
    method: str = "llm-bip",
    repair: list[str] = ["none", "ridge", "refine"],  # noqa: B006  # typer's way
    samples: int = 128,
    length: int = 512,
    compared: Annotated[Path | None, typer.Option("--beside", help="Of run_shapes.py.")] = None,
) -> None:
    console = Console(width=110)
    if compared is not None:
        hardware = Hardware.of("cpu", 1, disk_rate)
        console.print(
            table(beside(compared, hardware), f"seconds on {torch.get_num_threads()} threads")
        )
        return
    hardware = Hardware.of(device, devices, disk_rate)
    rows = []
    for name in shapes or ["llama-70b"]:
        for kind in repair:
            options = {"keep": [keep], "method": method, "repair": kind}
            found = counted(name, hardware, samples, length, options)
            rows.append((f"{name}, {kind}", found))
    many = f"{devices} x " * (devices > 1)
    title = f"seconds, {many}{device}, {samples} x {length} tokens, disk {disk_rate / 1e9:g} GB/s"
    console.print(table(rows, title))


if __name__ == "__main__":
    typer.run(main)
