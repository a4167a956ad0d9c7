"""Every method on the same model and texts: perplexity after the cut, and what the scores know.

    python bench/compare_methods.py MODEL TEXT \\
        --calibration-range 0:400 --probe-range 400:416 --evaluation-range 617:917

Of each method are printed the perplexity after a uniform cut without repair, at shares `--keep` of the
blocks' weights, and Spearman's correlation of its scores with the truth: the loss change of switching
off single units, all of them or `--probes` so many, on documents that no score has seen (FFN channels
and KV groups over all blocks, and as a mean of the blocks' own). Figures are medians over seeds; a
seed draws the calibration documents. With `--recover-steps N` the first seed's cuts (of
`--recover-keep`) are recovered by LoRA on all calibration documents, and measured again. What was
measured with the same settings lies in bench/results/compare and is not measured again.
"""

import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from compressor.config.recovery import RecoveryConfig
from compressor.config.target import Target
from compressor.evaluation.reference import perplexity
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.planning.plan import Plan
from compressor.recovery.data import RecoveryData, read_data
from compressor.recovery.stage import recover
from compressor.recovery.training import Training
from compressor.scoring.probing import loss_changes, sample_probes, spearman, state_bytes
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, describe, tokenize
from compressor.writing.cuts import write

DEFAULT = [
    *("random", "magnitude", "wanda-sp", "llm-bip"),
    *("taylor", "taylor-vector", "taylor-mix", "mask-fisher", "kfac"),
    *("hywia:" + mode for mode in ("fixed:1", "fixed:0", "fixed:0.5", "attention")),
]
RESULTS = Path(__file__).parent / "results/compare"
PASS_BYTES = 1 << 30  # of hidden states that a pass of probes may keep
CORRELATIONS = ("ffn", "ffn in block", "attention", "attention in block")

Truth = list[tuple[int, str, int, float]]  # block, group, unit, change of the loss in nats a token


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
        self.file.write_text(json.dumps(vars(self) | {"file": self.file.name}) + "\n")


def named(tokens: TokenSet) -> dict:
    """The protocol without the folder its text lies in: results hold on any machine."""
    return tokens.protocol | {"source": Path(tokens.protocol["source"]).name}


def measure_truth(stream: BlockStream, tokens: TokenSet, count: int | None, results) -> Truth:
    """The changes of all probes, in passes; the results are saved after each."""
    units = stream.checkpoint.block_units
    probes = sample_probes(units, count or sum(sum(block.values()) for block in units))
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

    found = {}
    for group in scores.blocks[0]:
        inner = [
            of(lambda *c, cell=cell: c == cell) for cell in sorted({*cells}) if cell[1] == group
        ]
        found[group] = of(lambda b, g, group=group: g == group)
        found[f"{group} in block"] = statistics.mean(inner)
    return found


def perplexity_after(
    stream: BlockStream,
    plan: Plan,
    judged: TokenSet,
    data: RecoveryData | None = None,
    recovery: RecoveryConfig | None = None,
) -> float:
    """Perplexity of what a plan leaves, without repair; after recovery if `data` is given."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        write(stream.checkpoint, plan, folder)
        if data is not None:
            cut, folder = folder, Path(place) / "recovered"
            history = recover(Training(recovery, data), cut, folder, Path(place) / "state", stream)
            if history.stopped:
                return float("inf")
        return perplexity(BlockStream(Checkpoint(folder)), judged)["perplexity"]


def main(
    model: Path,
    text: str,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
    evaluation: Annotated[str | None, typer.Option(help="Another text to judge on.")] = None,
    calibration_range: str = "0:400",
    probe_range: str = "400:416",
    evaluation_range: str = "617:917",
    samples: int = 64,
    seeds: int = 3,
    probes: Annotated[int | None, typer.Option(help="How many units; all by default.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="METHOD or METHOD:MODE.")] = None,
    keep: Annotated[list[float] | None, typer.Option(help="Shares of the blocks.")] = None,
    recover_steps: Annotated[int, typer.Option(help="Of LoRA, for the first seed.")] = 0,
    recover_batch: Annotated[int, typer.Option(help="Sequences of a step.")] = 4,
    recover_keep: Annotated[list[float] | None, typer.Option(help="At these; else all.")] = None,
) -> None:
    keep = keep or [0.9, 0.8, 0.7]
    checkpoint = Checkpoint(model)
    length = checkpoint.config["max_position_embeddings"]
    source, tokenizer = read_text(text), checkpoint.tokenizer()
    known, probed = (
        tokenize(source, tokenizer, length, None, span) for span in (calibration_range, probe_range)
    )
    other = read_text(evaluation) if evaluation else source
    judged = tokenize(other, tokenizer, length, None, evaluation_range)
    stream = BlockStream(checkpoint, dtype=torch.float32)
    found = Results(
        results,
        {"source": checkpoint.fingerprint, "samples": samples, "probes": probes}
        | {"calibration": named(known), "probed": named(probed), "judged": named(judged)},
    )
    truth = measure_truth(stream, probed, probes, found)
    recovery = RecoveryConfig("lora", steps=max(1, recover_steps), batch=recover_batch)
    recovery = recovery.of_width(checkpoint.hidden_size)
    data = None
    if recover_steps:
        wanted = recovery.steps * recovery.batch
        data = read_data(text, tokenizer, length, wanted, calibration_range)
    kept = {k: f"keep {k:g}" for k in keep}
    trained = f"LoRA {recover_steps} x {recover_batch}"
    recovered = {k: f"{k:g}, {trained}" for k in recover_keep or keep if recover_steps}
    columns = (*kept.values(), *recovered.values(), *CORRELATIONS)
    for name in method or DEFAULT:
        for seed in range(seeds):
            row = found.rows.setdefault(f"{name} {seed}", {})
            missing = {*kept.values(), *CORRELATIONS, *(recovered.values() if seed == 0 else ())}
            if row.keys() >= missing:
                continue
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(len(known.sequences), generator=generator)[:samples].tolist()
            calibration = TokenSet([known.sequences[i] for i in drawn], known.protocol)
            chosen, _, mode = name.partition(":")
            scores = score(checkpoint, chosen, mode or None, calibration, stream, seed)
            row |= correlations(scores, truth)
            for k in keep:
                plan = allocate(scores, checkpoint, Target("keep-blocks", k))
                if kept[k] not in row:
                    row[kept[k]] = perplexity_after(stream, plan, judged)
                if seed == 0 and k in recovered and recovered[k] not in row:
                    row[recovered[k]] = perplexity_after(stream, plan, judged, data, recovery)
                found.save()
    dense = perplexity(stream, judged)["perplexity"]
    table = Table(title=f"{model.name}, float32: perplexity {dense:.3f} before")
    for column in ("method", *columns):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in method or DEFAULT:
        rows = [found.rows[f"{name} {seed}"] for seed in range(seeds)]
        medians = {c: statistics.median(row[c] for row in rows if c in row) for c in columns}
        digits = {c: 2 if c in CORRELATIONS else 3 for c in columns}
        table.add_row(name, *(f"{v:.{digits[c]}f}" for c, v in medians.items()))
    table.caption = (
        f"truth of {len(truth)} units on {describe(probed.protocol)}\n"
        f"calibration: {seeds} times {samples} of {describe(known.protocol)}\n"
        f"perplexity on {describe(judged.protocol)}"
    )
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
