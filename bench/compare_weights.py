"""Every way to zero single weights on the same model and texts: the perplexity afterwards.

    python bench/compare_weights.py MODEL TEXT --calibration-range 0:400 --evaluation-range 617:917

At shares `--sparsity` of the blocks' projection weights, in float32. A seed draws the calibration
documents and decides BESA's order of them; figures are medians over seeds. Where the share reached is
not the one asked, it stands beside the figure: Wanda rounds down in every row, and BESA as its authors'
program has it ends near the target. What was measured with the same settings lies in
bench/results/compare_weights and is not measured again.
"""

import hashlib
import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from compressor.config.sparse import SparseConfig
from compressor.evaluation.reference import perplexity
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.sparse.stream import Sparsification
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, describe, tokenize
from compressor.writing.cuts import write

RESULTS = Path(__file__).parent / "results/compare_weights"
BESA = {
    "besa": {},
    "besa, layer": {"sharing": "layer"},
    "besa, pruned target": {"target": "pruned"},
    "besa, sampled": {"sampling": "categorical"},
    "besa, parity": {"parity": True},
    "besa, layer, parity": {"sharing": "layer", "parity": True},
    "besa, obs": {"update": "obs"},
    "besa, layer, obs": {"sharing": "layer", "update": "obs"},
}
DEFAULT = ["magnitude", "wanda", "besa, layer", "besa", "besa, parity", "sparsegpt", "besa, obs"]


class Results:
    """Of each method, seed and sparsity the perplexity, the share reached and the seconds taken.

    In a file named after the settings they hold for.
    """

    def __init__(self, folder: Path, settings: dict):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.file = folder / f"weights-{digest[:12]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.settings = settings
        self.rows: dict[str, dict[str, float]] = found.get("rows", {})

    def save(self) -> None:
        found = {"settings": self.settings, "rows": self.rows}
        self.file.write_text(json.dumps(found, indent=1) + "\n")


def named(tokens: TokenSet) -> dict:
    """The protocol without the folder its text lies in: results hold on any machine."""
    return tokens.protocol | {"source": Path(tokens.protocol["source"]).name}


def row_name(method: str, sparsity: float, seed: int) -> str:
    return f"{method} | {sparsity:g} | {seed}"


def measure(
    stream: BlockStream, name: str, sparsity: float, seed: int, known: list, judged: TokenSet
) -> dict[str, float]:
    """Prune on the documents `known`; perplexity of what is written."""
    checkpoint = stream.checkpoint
    recipe = SparseConfig(sparsity, name.partition(",")[0], **BESA.get(name, {})).recipe(seed)
    pruning, begun = Sparsification(stream, known, recipe), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        write(checkpoint, Plan.whole(checkpoint), folder, changes=pruning.blocks())
        seconds = time.perf_counter() - begun
        after = perplexity(BlockStream(Checkpoint(folder)), judged)["perplexity"]
    zeros = sum(sum(block["zeros"].values()) for block in pruning.record)
    weights = sum(
        checkpoint.tensors[checkpoint.block_name(i, name)].numel
        for i, block in enumerate(pruning.record)
        for name in block["zeros"]
    )
    return {"perplexity": after, "reached": zeros / weights, "seconds": round(seconds, 1)}


def main(
    model: Path,
    text: str,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
    calibration_range: str = "0:400",
    evaluation_range: str = "617:917",
    samples: int = 128,
    seeds: int = 3,
    method: Annotated[list[str] | None, typer.Option(help=", ".join([*DEFAULT, *BESA]))] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="Shares that go.")] = None,
) -> None:
    checkpoint, sparsity = Checkpoint(model), sparsity or [0.5, 0.6, 0.7]
    source, tokenizer = read_text(text), checkpoint.tokenizer()
    length = checkpoint.config["max_position_embeddings"]
    known, judged = (
        tokenize(source, tokenizer, length, None, span)
        for span in (calibration_range, evaluation_range)
    )
    stream = BlockStream(checkpoint, dtype=torch.float32)
    found = Results(
        results,
        {"source": checkpoint.fingerprint, "samples": samples}
        | {"calibration": named(known), "judged": named(judged)},
    )
    names = method or DEFAULT
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(known.sequences), generator=generator)[:samples].tolist()
        chosen = [known.sequences[i] for i in drawn]
        for name, s in product(names, sparsity):
            if row_name(name, s, seed) not in found.rows and not (name == "magnitude" and seed):
                row = measure(stream, name, s, seed, chosen, judged)
                found.rows[row_name(name, s, seed)] = row
                found.save()
    dense = perplexity(stream, judged)["perplexity"]
    shown = Table(title=f"{model.name}, float32: perplexity {dense:.3f} before")
    for column in ("method", *(f"{s:g}" for s in sparsity), "seconds"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for name in names:
        cells, spent = [], []
        for s in sparsity:
            keys = (row_name(name, s, seed) for seed in range(seeds))
            rows = [found.rows[key] for key in keys if key in found.rows]
            middle = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
            off = abs(middle["reached"] - s) > 0.004
            cells.append(
                f"{middle['perplexity']:.2f}" + (f" at {middle['reached']:.3f}" if off else "")
            )
            spent.append(middle["seconds"])
        shown.add_row(name, *cells, f"{statistics.median(spent):.0f}")
    shown.caption = (
        f"calibration: {seeds} times {samples} of {describe(known.protocol)}\n"
        f"perplexity on {describe(judged.protocol)}"
    )
    Console(width=120).print(shown)


if __name__ == "__main__":
    typer.run(main)
