"""Perplexity of every method at the same ratios, on the same model and texts.

    python bench/compare_methods.py MODEL --calibration TEXT --calibration-range 0:400 \\
        --evaluation TEXT --evaluation-range 617:917 --keep 0.9 --keep 0.8

Scores once a method, cuts at every ratio, no repair, no training; random is the median of seeds 0,
1 and 2. Prints one table.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.blocks import BlockStream
from compressor.calibration import describe, read_text, tokenize
from compressor.checkpoint import Checkpoint
from compressor.evaluation import perplexity
from compressor.methods import METHODS
from compressor.plan import Target, allocate
from compressor.scoring import score
from compressor.writing import write


def main(
    model: Path,
    calibration: str,
    evaluation: str,
    calibration_range: str | None = None,
    evaluation_range: str | None = None,
    keep: Annotated[list[float] | None, typer.Option()] = None,
    kind: Annotated[str, typer.Option(help="keep or keep-blocks.")] = "keep",
    samples: int = 128,
    length: int = 512,
) -> None:
    keep = keep or [0.9, 0.8]
    checkpoint = Checkpoint(model)
    tokenizer = checkpoint.tokenizer()
    length = min(length, checkpoint.config["max_position_embeddings"])
    seen = tokenize(read_text(calibration), tokenizer, length, samples, calibration_range)
    judged = tokenize(read_text(evaluation), tokenizer, length, None, evaluation_range)
    stream = BlockStream(checkpoint)
    dense = perplexity(stream, judged)["perplexity"]
    table = Table(title=f"{model.name}: perplexity, dense {dense:.3f}")
    for column in ("method", "mode", *(f"{kind} {k:g}" for k in keep)):
        table.add_column(column, justify="right")
    widths = {}
    for method in METHODS.values():
        for mode in method.modes:
            seeds = (0, 1, 2) if method.name == "random" else (0,)
            found: dict[float, list[float]] = {k: [] for k in keep}
            for seed in seeds:
                scores = score(checkpoint, method.name, mode, seen, stream, 100 * seed)
                for k in keep:
                    plan = allocate(scores, checkpoint, Target(kind, k))
                    widths[k] = plan.widths()[0]
                    with tempfile.TemporaryDirectory() as folder:
                        write(checkpoint, plan, Path(folder) / "out")
                        cut = BlockStream(Checkpoint(Path(folder) / "out"))
                        found[k].append(perplexity(cut, judged)["perplexity"])
            table.add_row(method.name, mode, *(f"{statistics.median(found[k]):.3f}" for k in keep))
    table.caption = (
        f"calibration {describe(seen.protocol)}\nevaluation {describe(judged.protocol)}\n"
        + "\n".join(f"{kind} {k:g}: {w} of {checkpoint.units}" for k, w in widths.items())
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
