"""Perplexity before and after recovery, at several ratios.

    python bench/recovery.py MODEL --out FOLDER --calibration TEXT --calibration-range 0:400 \\
        --evaluation TEXT --evaluation-range 617:917 --keep-blocks 0.9 --keep-blocks 0.8 \\
        [-- other options of `compress`]

Runs `compress` into FOLDER once a method of recovery and a ratio; what lies there is not run again, and
an interrupted run goes on where it stopped. Prints one table.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

METHODS = ("lora", "distill")


def main(
    model: Path,
    out: Annotated[Path, typer.Option()],
    calibration: Annotated[str, typer.Option()],
    evaluation: Annotated[str, typer.Option()],
    calibration_range: str | None = None,
    evaluation_range: str | None = None,
    keep_blocks: Annotated[list[float] | None, typer.Option()] = None,
    others: Annotated[list[str] | None, typer.Argument()] = None,
) -> None:
    options = ["--calibration", calibration, "--evaluation", evaluation, *(others or [])]
    options += ["--calibration-range", calibration_range] if calibration_range else []
    options += ["--evaluation-range", evaluation_range] if evaluation_range else []
    ratios = keep_blocks or [0.9, 0.8, 0.7]
    found = {(k, m): recovered(model, out, k, m, options) for k in ratios for m in METHODS}
    first = found[ratios[0], METHODS[0]]
    table = Table(title=f"{model.name}: perplexity, dense {first['perplexity_before']:.3f}")
    for column in ("blocks kept", "cut", *METHODS):
        table.add_column(column, justify="right")
    for keep in ratios:
        cut = found[keep, METHODS[0]]["perplexity_pruned"]
        after = [f"{found[keep, m]['perplexity_after']:.3f}" for m in METHODS]
        table.add_row(f"{keep:g}", f"{cut:.3f}", *after)
    settings, data = first["recovery"]["settings"], first["recovery"]["data"]
    table.caption = (
        f"{settings['steps']} steps of {settings['batch']} sequences at {settings['learning_rate']:.2e}"
        f"\n{data['sequences']} sequences of {data['source']}, {data['tokens']:,} tokens"
    )
    Console(width=100).print(table)


def recovered(model: Path, out: Path, keep: float, method: str, options: list[str]) -> dict:
    """compression.json of one run."""
    dest = out / f"{model.name}-{keep:g}-{method}"
    if not dest.exists():
        command = [str(Path(sys.executable).with_name("compress")), str(model), str(dest)]
        command += ["--keep-blocks", str(keep), "--recover", method, *options]
        command += ["--max-perplexity-ratio", "off", "--no-verify", "--quiet"]
        command += ["--resume"] if dest.with_name(dest.name + ".work").exists() else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((dest / "compression.json").read_text())


if __name__ == "__main__":
    typer.run(main)
