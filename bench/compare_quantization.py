"""4-bit weights by rounding to nearest and by learning, after a cut and with zeros: perplexities.

    python bench/compare_quantization.py MODEL TEXT --group 32 --documents 128 --evaluation-range 617:917

Every case is a whole `compress` or `sparsify` job without verification; a seed calibrates on
`--documents` documents or windows of its own (0:128, 128:256, ...).

    cut, nearest      keep_blocks=0.8 and default repair, then quantize="w4a16", quantize_clip="none"
    cut, learned      the same with quantize_clip="learned"
    zeros, nearest    sparsity=0.5 (BESA), then quantize_clip="none"
    zeros, learned    the same zeros, then the sparse folder quantised with quantize_clip="learned"
    zeros, joint      BESA and clipping learned together

What was measured with the same settings lies in bench/results/quantization and is not measured again.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.config.job import JobConfig, job_config, sparsify_config
from compressor.job.compress import run_job
from compressor.job.progress import Lines
from compressor.model.checkpoint import Checkpoint
from compressor.report.result import Result

RESULTS = Path(__file__).parent / "results/quantization"
KEEP, SPARSITY = 0.8, 0.5
CASES = ("cut, nearest", "cut, learned", "zeros, nearest", "zeros, learned", "zeros, joint")


def run_case(case: str, model: Path, group: int, texts: dict, seed: int, place: Path) -> dict:
    """Perplexities of the dense model, of what was cut or zeroed, and of that in 4 bits."""
    what, how = case.split(", ")
    common = {"verify": False, "max_perplexity_ratio": None, "seed": seed, **texts}
    clip = "none" if how == "nearest" else "learned"
    packed = common | {"quantize": "w4a16", "quantize_group": group, "quantize_clip": clip}

    def run(config: JobConfig) -> Result:
        return run_job(config, Lines(quiet=True))[0]

    if what == "cut":
        found = run(job_config(model, place / "q", keep_blocks=KEEP, **packed))
    elif how == "learned":
        sparse = run(sparsify_config(model, place / "sparse", sparsity=SPARSITY, **common))
        found = run(job_config(sparse.dest, place / "q", **packed))
        found.perplexity_before = sparse.perplexity_before
    else:
        found = run(sparsify_config(model, place / "q", sparsity=SPARSITY, **packed))
    return {
        "dense": found.perplexity_before,
        "unquantised": found.perplexity_unquantized,
        "4-bit": found.perplexity_after,
        "bits": found.quantization["bits_per_weight"],
    }


def main(
    model: Path,
    text: str,
    evaluation: Annotated[str | None, typer.Option(help="Another text to judge on.")] = None,
    evaluation_range: str = "617:917",
    group: int = 32,
    documents: Annotated[int, typer.Option(help="Calibration documents of a seed.")] = 128,
    length: int = 512,
    seeds: int = 3,
    case: Annotated[
        list[str] | None, typer.Option(help="One of the above; all by default.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    checkpoint = Checkpoint(model)
    file = results / f"{model.resolve().name}-group-{group}.json"
    results.mkdir(parents=True, exist_ok=True)
    known = {
        "source": checkpoint.fingerprint,
        "group": group,
        "text": Path(text).name,
        "evaluation": [Path(evaluation or text).name, evaluation_range],
        "documents": documents,
        "length": length,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
    }
    found = json.loads(file.read_text()) if file.exists() else {}
    rows = found["rows"] if found.get("settings") == known else {}
    for name in case or CASES:
        for seed in range(seeds):
            if f"{name} {seed}" in rows:
                continue
            texts = {
                "calibration": text,
                "calibration_range": f"{seed * documents}:{(seed + 1) * documents}",
                "samples": documents,
                "length": length,
                "evaluation": evaluation or text,
                "evaluation_range": evaluation_range,
            }
            with tempfile.TemporaryDirectory() as place:
                row = run_case(name, model, group, texts, seed, Path(place))
            rows[f"{name} {seed}"] = row
            file.write_text(json.dumps({"settings": known, "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{model.name}, {known['dtype']}, groups of {group}: medians (all)")
    for column in ("case", "bits a weight", "dense", "unquantised", "4-bit"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name in case or CASES:
        some = [rows[f"{name} {seed}"] for seed in range(seeds) if f"{name} {seed}" in rows]
        cells = [f"{some[0]['bits']:.2f}"]
        for key in ("dense", "unquantised", "4-bit"):
            values = [row[key] for row in some if row[key] is not None]
            every = ", ".join(f"{v:.3f}" for v in values)
            cells.append(f"{statistics.median(values):.3f} ({every})" if values else "")
        table.add_row(name, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
