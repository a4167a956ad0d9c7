"""A whole run of BESA on single weights: by this package's ops and by the published construction.

    python bench/run_besa.py MODEL TEXT --calibration-range 0:400 --evaluation-range 617:917

Both runs read, learn and write the model in float32 from the same `--samples` documents; they differ in
what makes the pruned weights of a step and their gradient. They take turns `--repeats` times; `faster`
is the median over the turns. That the results are the same is said by the perplexities and by the share
of weights on which both decide alike: roundings differ, and a weight at the edge of a cut may go either
way. The figures are added to bench/results/run-besa-cpu-DATE.json.
"""

import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer

from compressor.config.sparse import SparseConfig
from compressor.evaluation.reference import perplexity
from compressor.kernels.bench import published_besa
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.sparse import besa
from compressor.sparse.stream import Sparsification
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.writing.cuts import write

RESULTS = Path(__file__).parent / "results"


class Published:
    """`besa_mask_many` by the eager construction, from int64 orders that are made once a block."""

    def __init__(self):
        self.ranks, self.orders = [], []

    def __call__(self, weights, ranks, beta, cuts):
        if not self.ranks or ranks[0] is not self.ranks[0]:
            self.ranks, self.orders = ranks, [r.to(torch.int32).argsort(1) for r in ranks]
        parts = beta.split([len(cut) for cut in cuts])
        jobs = zip(weights, self.orders, parts, cuts, strict=True)
        return [published_besa.published_mask(*job) for job in jobs]


def run(stream: BlockStream, sequences: list, sparsity: float, folder: Path) -> float:
    """Processor seconds to prune and write, which other work on the machine disturbs least."""
    begun = time.process_time()
    changes = Sparsification(stream, sequences, SparseConfig(sparsity).recipe()).blocks()
    write(stream.checkpoint, Plan.whole(stream.checkpoint), folder, changes=changes)
    return time.process_time() - begun


def decided_alike(one: Checkpoint, other: Checkpoint) -> float:
    """The share of the blocks' weights that both keep, or both prune."""
    alike = count = 0
    for i in range(one.blocks):
        theirs = other.read_block(i)
        for name, weight in one.read_block(i).items():
            alike += int(((weight == 0) == (theirs[name] == 0)).sum())
            count += weight.numel()
    return alike / count


def main(
    model: Path,
    text: str,
    calibration_range: str = "0:400",
    evaluation_range: str = "617:917",
    samples: int = 128,
    sparsity: float = 0.5,
    repeats: int = 3,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    checkpoint = Checkpoint(model)
    length = checkpoint.config["max_position_embeddings"]
    source, tokenizer = read_text(text), checkpoint.tokenizer()
    known, judged = (
        tokenize(source, tokenizer, length, None, span)
        for span in (calibration_range, evaluation_range)
    )
    stream, sequences = BlockStream(checkpoint, dtype=torch.float32), known.sequences[:samples]
    seconds = {"ours": [], "published": []}
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in seconds}
        for turn in range(repeats):
            for name in seconds:
                folder = folders[name].with_suffix(f".{turn}")
                mask = besa.besa_mask_many if name == "ours" else Published()
                with patch.object(besa, "besa_mask_many", mask):
                    seconds[name].append(run(stream, sequences, sparsity, folder))
        written = {name: Checkpoint(folder.with_suffix(".0")) for name, folder in folders.items()}
        found = {
            "model": model.name,
            "sparsity": sparsity,
            "samples": len(sequences),
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "processor seconds": {
                name: [round(s, 2) for s in times] for name, times in seconds.items()
            },
            "faster": round(
                statistics.median(
                    theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)
                ),
                3,
            ),
            "perplexity": {
                name: perplexity(BlockStream(one), judged)["perplexity"]
                for name, one in written.items()
            },
            "decided alike": decided_alike(*written.values()),
        }
    print(json.dumps(found, indent=1))
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"run-besa-cpu-{date.today()}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*rows, found], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
