"""How well scores know what the loss does: every method against the measured truth.

    python bench/score_quality.py MODEL TEXT --results FOLDER \\
        --calibration-range 0:400 --probe-range 400:416 --evaluation-range 617:917

The truth is the loss change of switching off single units, all of them or `--probes` so many, on
documents that no score has seen. Of each method are printed Spearman's correlation with it (of the
FFN channels and the KV groups over all blocks and as a mean of the blocks' own, and of all units
together), and the perplexity after a uniform cut without repair. Figures are medians over seeds;
a seed draws the calibration documents. What was measured with the same settings lies in FOLDER and is
not measured again.
"""

import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from compare_methods import perplexity_after
from rich.console import Console
from rich.table import Table

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, describe, read_text, tokenize
from compressor.checkpoint import Checkpoint
from compressor.evaluation import perplexity
from compressor.gradients import backward
from compressor.methods.kfac import Kfac, MaskFisher
from compressor.methods.statistics import Geometry
from compressor.plan import Target, allocate
from compressor.probing import loss_changes, sample_probes, spearman, state_bytes
from compressor.scores import Scores, score

OBSERVERS = {"kfac": Kfac, "mask-fisher": MaskFisher}
DEFAULT = [
    "random",
    "magnitude",
    "wanda-sp",
    "llm-bip",
    *("hywia:" + mode for mode in ("attention", "fixed:0.5", "fixed:1", "fixed:0")),
    "mask-fisher",
    "kfac",
]
PASS_BYTES = 1 << 30  # of hidden states that a pass of probes may keep
CORRELATIONS = ("ffn", "ffn in block", "attention", "attention in block", "all units")

Truth = list[tuple[int, str, int, float]]  # block, group, unit, change of the loss in nats a token


def scores_of(name: str, stream: BlockStream, calibration: TokenSet, seed: int) -> Scores:
    """Scores of METHOD or METHOD:MODE on a calibration set."""
    method, _, mode = name.partition(":")
    if method not in OBSERVERS:
        return score(stream.checkpoint, method, mode or None, calibration, stream, seed)
    geometry = Geometry.of(stream.checkpoint)
    batches = [s[None] for s in calibration.sequences]
    blocks: list[dict[str, torch.Tensor]] = [{} for _ in range(stream.checkpoint.blocks)]

    def visit(index: int, layer, steps) -> None:
        with OBSERVERS[method](layer, geometry, index) as observer:
            for i in steps():
                observer.end_sequence(batches[i].shape[1] - 1)
            blocks[index] = observer.reduced()

    backward(stream, batches, visit)
    return Scores(blocks, {"method": method})


class Results:
    """`truth` and `rows` (by method and seed), in a file named after the settings they hold for."""

    def __init__(self, folder: Path, settings: dict):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.file = folder / f"scores-{digest[:12]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.settings, self.truth = settings, found.get("truth", [])
        self.rows: dict[str, dict[str, float]] = found.get("rows", {})

    def save(self) -> None:
        self.file.write_text(json.dumps(vars(self) | {"file": self.file.name}, indent=1) + "\n")


def measure_truth(stream: BlockStream, tokens: TokenSet, count: int | None, results) -> Truth:
    """The changes of all probes, in passes; the results are saved after each."""
    units, blocks = stream.checkpoint.units, stream.checkpoint.blocks
    probes = sample_probes(units, blocks, count or blocks * sum(units.values()))
    batches = tokens.batches()
    truth = results.truth
    size = max(1, PASS_BYTES // state_bytes(stream, batches, 0) - 1)
    while len(truth) < len(probes):
        some = probes[len(truth) : len(truth) + size]
        changes = loss_changes(stream, batches, some).tolist()
        truth += [(*probe, change) for probe, change in zip(some, changes, strict=True)]
        results.save()
    return truth


def correlations(scores: Scores, truth: Truth) -> dict[str, float]:
    """Spearman of scores and true changes, as CORRELATIONS names them."""
    guess = torch.tensor([float(scores.blocks[b][g][u]) for b, g, u, _ in truth])
    change = torch.tensor([c for *_, c in truth])
    cells = [(b, g) for b, g, *_ in truth]

    def of(chosen: Callable[[int, str], bool]) -> float:
        rows = torch.tensor([chosen(*cell) for cell in cells])
        return spearman(guess[rows], change[rows])

    found = {"all units": of(lambda b, g: True)}
    for group in scores.blocks[0]:
        inner = [
            of(lambda *c, cell=cell: c == cell) for cell in sorted({*cells}) if cell[1] == group
        ]
        found[group] = of(lambda b, g, group=group: g == group)
        found[f"{group} in block"] = statistics.mean(inner)
    return found


def main(
    model: Path,
    text: str,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")],
    calibration_range: str = "0:400",
    probe_range: str = "400:416",
    evaluation_range: str = "617:917",
    samples: int = 64,
    seeds: int = 3,
    probes: Annotated[int | None, typer.Option(help="How many units; all by default.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="METHOD or METHOD:MODE.")] = None,
    keep: Annotated[list[float] | None, typer.Option(help="Shares of the blocks.")] = None,
) -> None:
    keep = keep or [0.9, 0.8, 0.7]
    checkpoint = Checkpoint(model)
    length = checkpoint.config["max_position_embeddings"]
    source, tokenizer = read_text(text), checkpoint.tokenizer()
    known, probed, judged = (
        tokenize(source, tokenizer, length, None, span)
        for span in (calibration_range, probe_range, evaluation_range)
    )
    stream = BlockStream(checkpoint, dtype=torch.float32)
    found = Results(
        results,
        {"source": checkpoint.fingerprint, "samples": samples, "probes": probes}
        | {"calibration": known.protocol, "probed": probed.protocol, "judged": judged.protocol},
    )
    truth = measure_truth(stream, probed, probes, found)
    columns = (*CORRELATIONS, *(f"keep {k:g}" for k in keep))
    for name in method or DEFAULT:
        for seed in range(seeds):
            key = f"{name} {seed}"
            if found.rows.get(key, {}).keys() >= set(columns):
                continue
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(len(known.sequences), generator=generator)[:samples].tolist()
            calibration = TokenSet([known.sequences[i] for i in drawn], known.protocol)
            scores = scores_of(name, stream, calibration, seed)
            row = correlations(scores, truth)
            for k in keep:
                plan = allocate(scores, checkpoint, Target("keep-blocks", k))
                row[f"keep {k:g}"] = perplexity_after(checkpoint, plan, judged)
            found.rows[key] = row
            found.save()
    dense = perplexity(stream, judged)["perplexity"]
    table = Table(title=f"{model.name}, float32: dense {dense:.3f}")
    for column in ("method", *columns):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in method or DEFAULT:
        rows = [found.rows[f"{name} {seed}"] for seed in range(seeds)]
        medians = {c: statistics.median(row[c] for row in rows) for c in columns}
        table.add_row(name, *(f"{v:.{3 if c[:4] == 'keep' else 2}f}" for c, v in medians.items()))
    table.caption = (
        f"truth of {len(truth)} units on {describe(probed.protocol)}\n"
        f"calibration: {seeds} times {samples} of {describe(known.protocol)}\n"
        f"perplexity on {describe(judged.protocol)}"
    )
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
