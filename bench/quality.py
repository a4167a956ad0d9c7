"""Perplexity after the cut: models x methods x selections x repairs x share of the blocks kept.

    python bench/quality.py MODEL... --text stories.json --calibration-range 0:400 \\
        --evaluation-range 617:917 --method llm-bip --repair ridge --repair refine

Every cell is one row of `results/quality/MODEL.csv`, written as soon as it is measured; what stands
there already is not measured again. Seed 0 calibrates on the first `--samples` documents, as `compress`
does, every other seed on a draw of its own. In the end the table of medians over the seeds is printed.
"""

import csv
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from compressor.allocation import allocate
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, read_text, tokenize
from compressor.checkpoint import Checkpoint
from compressor.evaluation import perplexity
from compressor.plan import Plan, Target
from compressor.repair.streaming import Repair
from compressor.scores import Scores
from compressor.scoring import score
from compressor.selection import refined
from compressor.writing import write

RESULTS = Path(__file__).parent / "results/quality"


@dataclass(frozen=True)
class Cell:
    """What is measured: one line of the table, and column of it, at one seed."""

    method: str  # METHOD or METHOD:MODE
    select: str  # as --select, + measured with --kv-cost measured
    repair: str
    keep: float
    samples: int
    calibration: str
    evaluation: str
    seed: int


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
        self.found[cell] = value
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            if new:
                writer.writerow(self.header)
            writer.writerow([*astuple(cell), f"{value:.4f}", f"{seconds:.1f}"])


def drawn(tokens: TokenSet, samples: int, seed: int) -> TokenSet:
    """So many sequences: the first for seed 0, else drawn."""
    count = len(tokens.sequences)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist() if seed else range(count)
    return TokenSet([tokens.sequences[i] for i in order[:samples]], tokens.protocol)


def selected(name: str, how: str, calibration: TokenSet, stream: BlockStream, seed: int) -> Scores:
    """Scores of METHOD or METHOD:MODE, as `--select` and `--kv-cost` leave them."""
    method, _, mode = name.partition(":")
    scores = score(stream.checkpoint, method, mode or None, calibration, stream, seed)
    select, _, measured = how.partition("+")
    return refined(scores, stream, calibration, select, measured or "score")


def perplexity_after(
    stream: BlockStream, plan: Plan, repair: str, calibration: TokenSet, judged: TokenSet
) -> tuple[float, float]:
    """Perplexity of what is written, and the seconds of repairing and writing."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        blocks = None if repair == "none" else Repair(stream, plan, calibration, repair).blocks()
        write(stream.checkpoint, plan, folder, changes=blocks)
        seconds = time.perf_counter() - begin
        return perplexity(BlockStream(Checkpoint(folder)), judged)["perplexity"], seconds


def main(
    model: list[Path],
    text: Annotated[str, typer.Option(help="Documents to calibrate and to judge on.")],
    evaluation: Annotated[str | None, typer.Option(help="Another text to judge on.")] = None,
    calibration_range: str = "0:400",
    evaluation_range: str = "617:917",
    method: Annotated[list[str], typer.Option(help="METHOD or METHOD:MODE.")] = ["llm-bip"],  # noqa: B006
    select: Annotated[
        list[str], typer.Option(help="score or obs; +measured: KV groups by their true cost.")
    ] = ["score"],  # noqa: B006
    repair: list[str] = ["none", "ridge", "refine"],  # noqa: B006
    keep: Annotated[list[float], typer.Option(help="Shares of the blocks.")] = [0.9, 0.8, 0.7, 0.5],  # noqa: B006
    samples: int = 128,
    seeds: int = 1,
    results: Annotated[Path, typer.Option(help="Folder of the CSV files.")] = RESULTS,
) -> None:
    for folder in model:
        checkpoint = Checkpoint(folder)
        length = checkpoint.config["max_position_embeddings"]
        tokenizer = checkpoint.tokenizer()
        known = tokenize(read_text(text), tokenizer, length, None, calibration_range)
        other = read_text(evaluation or text)
        judged = tokenize(other, tokenizer, length, None, evaluation_range)
        stream = BlockStream(checkpoint, dtype=torch.float32)
        rows = Rows(results / f"{folder.name}.csv")
        medians = defaultdict(list)
        for name, chosen, seed in product(method, select, range(seeds)):
            calibration, scores = drawn(known, samples, seed), None
            for how, share in product(repair, keep):
                cell = Cell(
                    name, chosen, how, share, samples, calibration_range, evaluation_range, seed
                )
                if cell not in rows.found:
                    scores = scores or selected(name, chosen, calibration, stream, seed)
                    plan = allocate(scores, checkpoint, Target("keep-blocks", share))
                    rows.add(cell, *perplexity_after(stream, plan, how, calibration, judged))
                medians[name, chosen, how, share].append(rows.found[cell])
        table = Table(
            *("method", "select", "repair"),
            *(f"{k:g}" for k in keep),
            title=f"{folder.name}, float32: {perplexity(stream, judged)['perplexity']:.3f} before",
            caption=f"perplexity, medians of {seeds} seeds, {samples} calibration sequences",
        )
        for line in product(method, select, repair):
            table.add_row(*line, *(f"{statistics.median(medians[(*line, k)]):.3f}" for k in keep))
        Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
