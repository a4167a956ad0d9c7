"""Perplexity after the cut: models x methods x selections x allocations x repairs x share of the blocks.

    python bench/quality.py MODEL... --text stories.json --calibration-range 0:400 \\
        --evaluation-range 617:917 --method llm-bip --repair ridge --allocate exact:per-layer

Every cell is one row of `results/quality/MODEL.csv`, written as soon as it is measured; what stands
there already is not measured again. Widths are those that `compress` takes: where an allocation is
judged by held-back text, the best of what it compares. Seed 0 calibrates on the first `--samples`
documents (as many as `compress` takes, by default), every other seed on a draw of its own; `--also`
adds as many tokens of a second text. In the end the table of medians over the seeds is printed, beside
what others reach (`peers.csv`), and drawn as MODEL.png.
"""

import csv
import statistics
import time
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from itertools import accumulate, product
from pathlib import Path
from typing import Annotated

import matplotlib
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import compressor
from compressor import Plan, Scores

RESULTS = Path(__file__).parent / "results/quality"
PEERS = Path(__file__).with_name("peers.csv")
LONGEST = 1 << 20  # tokens of a sequence: as many as the model has positions
Ids = list[torch.Tensor]  # the token ids of sequences
CHARTED = ("dashed", "solid", "dotted", "dashdot")


@dataclass(frozen=True)
class Cell:
    """What is measured: one line of the table, and column of it, at one seed."""

    method: str  # METHOD or METHOD:MODE, + channels with `experts="channels"`
    select: str  # as the option `select`, + measured with `kv_cost="measured"`
    repair: str  # REPAIR or refine:EPOCHS
    keep: float
    samples: int
    calibration: str
    evaluation: str
    seed: int
    allocate: str = "uniform"  # ALLOCATION or ALLOCATION:LAYOUT
    also: str = ""  # the name of a second text's file


class Rows:
    """A CSV file: a cell a row, its perplexity and the seconds of the repair behind it."""

    def __init__(self, file: Path):
        self.file, self.found = file, {}
        self.header = [*(f.name for f in fields(Cell)), "perplexity", "seconds"]
        if file.exists():
            with file.open() as lines:
                for row in csv.DictReader(lines):
                    cell = Cell(*(f.type(row[f.name]) for f in fields(Cell)))
                    self.found[cell] = float(row["perplexity"])

    def add(self, cell: Cell, value: float, seconds: float) -> None:
        text = f"{value:.4f}"
        self.found[cell] = float(text)  # as later runs read it
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            if new:
                writer.writerow(self.header)
            writer.writerow([*astuple(cell), text, f"{seconds:.1f}"])


def read(text: str, span: str, folder: Path) -> Ids:
    """The documents or windows A:B of a text."""
    part = f"{text}[{span}]" if span else text
    return compressor.tokens(part, folder, whole=True, length=LONGEST).sequences


def drawn(rows: Ids, samples: int, seed: int) -> Ids:
    """So many sequences of token ids: the first for seed 0, else drawn."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist() if seed else range(len(rows))
    return [rows[i] for i in order[:samples]]


def as_many(rows: Ids, tokens: int) -> Ids:
    """The first sequences, until they come to so many tokens."""
    before = accumulate((len(row) for row in rows), initial=0)
    return [row for row, count in zip(rows, before, strict=False) if count < tokens]


class Planned:
    """The plans that `compress` makes of one calibration set's scores, each made once."""

    def __init__(self, folder: Path, calibration: Ids, name: str, how: str, seed: int):
        self.folder, self.calibration = folder, calibration
        select, _, cost = how.partition("+")
        options = {"select": select, "kv_cost": cost or "score", "seed": seed, "dtype": "float32"}
        method, _, within = name.partition("+")
        options["experts"] = within or "whole"
        self.scores = compressor.score(folder, calibration, method, **options)
        self.measured: dict[tuple, Scores] = {}
        self.plans: dict[tuple, Plan] = {}

    def plan(self, allocate: str, repair: str, share: float) -> Plan:
        how, _, layout = allocate.partition(":")
        # What cuts cost is measured after the closed form, which `refine` begins with.
        key = allocate, repair.partition(":")[0].replace("refine", "ridge"), share
        if key not in self.plans:
            known = Scores(self.scores.blocks, self.scores.about)
            scores = self.measured.setdefault((how, key[1]), known)
            options = {"allocate": how, "layout": layout or "uniform", "repair": key[1]}
            options |= {"keep_blocks": share, "dtype": "float32"}
            self.plans[key] = compressor.plan(scores, self.folder, self.calibration, **options)
        return self.plans[key]


def perplexity_after(
    folder: Path, plan: Plan, repair: str, calibration: Ids, judged: Ids
) -> tuple[float, float]:
    """Perplexity of what a plan leaves, and the seconds of cutting and repairing."""
    begin = time.perf_counter()
    small = compressor.cut(folder, plan, layout="per-layer")
    if repair != "none":
        small = compressor.repair(small, folder, calibration, repair, dtype="float32")
    seconds = time.perf_counter() - begin
    return compressor.evaluate(small, judged, dtype="float32")["perplexity"], seconds


def peers_of(model: str, evaluation: str) -> dict[str, dict[float, float]]:
    """What others' programs reach on a model and a text: perplexity by the share that stays, by name."""
    found = defaultdict(dict)
    with PEERS.open() as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            if (row["model"], row["evaluation"]) == (model, evaluation):
                found[row["peer"]][float(row["keep"])] = float(row["perplexity"])
    return dict(found)


def draw(title: str, sizes: dict[float, float], lines: dict[str, dict[float, float]], ours: set):
    """A figure of perplexities by size in millions of parameters; lines not in `ours` are grey."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab20"].colors
    for at, (name, values) in enumerate(lines.items()):
        grey = {"color": str(0.45 + 0.05 * (at % 8)), "linestyle": CHARTED[at % len(CHARTED)]}
        style = {"color": colours[at % 20], "marker": "o"} if name in ours else grey
        keep = sorted(values)
        axes.plot([sizes[k] for k in keep], [values[k] for k in keep], label=name, **style)
    axes.set(title=title, xlabel="million parameters", ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small")
    return figure


def main(
    model: list[Path],
    text: Annotated[str, typer.Option(help="Documents to calibrate and to judge on.")],
    evaluation: Annotated[str | None, typer.Option(help="Another text to judge on.")] = None,
    calibration_range: str = "0:400",
    evaluation_range: str = "617:917",
    method: Annotated[
        list[str], typer.Option(help="METHOD or METHOD:MODE; +channels: those inside of experts.")
    ] = ["llm-bip"],  # noqa: B006
    select: Annotated[
        list[str], typer.Option(help="score or obs; +measured: KV groups by their true cost.")
    ] = ["score"],  # noqa: B006
    allocate: Annotated[
        list[str], typer.Option(help="ALLOCATION, or ALLOCATION:per-layer for widths of their own.")
    ] = ["uniform"],  # noqa: B006
    repair: Annotated[
        list[str], typer.Option(help="REPAIR, or refine:EPOCHS for more than one.")
    ] = ["none", "ridge", "refine"],  # noqa: B006
    keep: Annotated[list[float], typer.Option(help="Shares of the blocks.")] = [0.9, 0.8, 0.7, 0.5],  # noqa: B006
    samples: int | None = None,
    seeds: int = 1,
    also: Annotated[Path | None, typer.Option(help="A second text, as many tokens of it.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the CSV files.")] = RESULTS,
) -> None:
    for folder in model:
        known = read(text, calibration_range, folder)
        judged = read(evaluation or text, evaluation_range, folder)
        second = read(str(also), "", folder) if also else None
        default = f"{text}[{calibration_range}]"
        count = samples or len(compressor.tokens(default, folder, length=LONGEST).sequences)
        rows = Rows(results / f"{folder.name}.csv")
        medians = defaultdict(lambda: defaultdict(list))
        for name, chosen, seed in product(method, select, range(seeds)):
            calibration, planned = drawn(known, count, seed), None
            if second is not None:
                calibration += as_many(second, sum(map(len, calibration)))
            for allocation, share, how in product(allocate, keep, repair):
                cell = Cell(
                    *(name, chosen, how, share, count, calibration_range, evaluation_range),
                    seed,
                    allocation,
                    also.name if also else "",
                )
                if cell not in rows.found:
                    planned = planned or Planned(folder, calibration, name, chosen, seed)
                    plan = planned.plan(allocation, how, share)
                    rows.add(cell, *perplexity_after(folder, plan, how, calibration, judged))
                medians[name, chosen, allocation, how][share].append(rows.found[cell])
        dense = compressor.evaluate(folder, judged, dtype="float32")["perplexity"]
        peers = peers_of(folder.name, evaluation_range)
        title = f"{folder.name}, float32: {dense:.3f} before"
        table = Table(
            *("method", "select", "allocate", "repair"),
            *(f"{k:g}" for k in keep),
            title=title,
            caption=f"perplexity, medians of {seeds} seeds, {count} calibration sequences",
        )
        found = {}
        for line, values in medians.items():
            found[" ".join(line)] = {k: statistics.median(values[k]) for k in keep}
            table.add_row(*line, *(f"{found[' '.join(line)][k]:.3f}" for k in keep))
        for name, values in peers.items():
            shown = (f"{values[k]:g}" if k in values else "-" for k in keep)
            table.add_row(name, "", "", "", *shown)
        Console(width=130).print(table)
        source = compressor.inspect(folder)
        prunable = sum(block["parameters"] for block in source["blocks"])
        shares = {k for values in [*found.values(), *peers.values()] for k in values}
        sizes = {k: (source["parameters"] - (1 - k) * prunable) / 1e6 for k in shares}
        figure = draw(title, sizes, peers | found, {*found})
        figure.savefig(results / f"{folder.name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    typer.run(main)
