"""Allocations of the same scores: perplexity of what besa, exact, uniform and each constant split leave.

    python bench/compare_allocations.py MODEL TEXT --calibration-range 0:400 --evaluation-range 617:917

Of each seed, which draws the calibration documents, units are scored once. At shares `--keep` of the
blocks' weights and with each `--repair`, every allocation is cut, repaired and measured: `besa`, `exact`
and `uniform` in the uniform layout, all constant splits, besa and exact with widths of its own for every
block (`own`), and what `compress` takes by held-back text, in the uniform layout (`taken`) and with own
widths (`taken, own`). Printed are medians over seeds. What was measured with the same settings lies in
bench/results/allocations and is not measured again (scores of an unfinished seed in the temp folder).
"""

import hashlib
import json
import math
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from compressor.config.layouts import PER_LAYER
from compressor.config.target import Target
from compressor.measuring.besa import learn_block
from compressor.measuring.guard import held_back, judge, loss_after
from compressor.measuring.landscape import measure_landscape
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.alignment import ANY
from compressor.planning.allocation import alignment, allocate, plan_of
from compressor.planning.costs import Costs
from compressor.planning.lattice import Wanted
from compressor.planning.plan import Plan
from compressor.planning.uniform import constant_splits, everywhere
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, describe, tokenize

RESULTS = Path(__file__).parent / "results/allocations"


def named(tokens: TokenSet) -> dict:
    """The protocol without the folder its text lies in: results hold on any machine."""
    return tokens.protocol | {"source": Path(tokens.protocol["source"]).name}


def plans_of(scores: Scores, checkpoint: Checkpoint, target: Target) -> dict[str, Plan]:
    steps = alignment(target, checkpoint, Wanted(), how="exact", scores=scores).lattice
    plans = {
        how: allocate(scores, checkpoint, target, Wanted(align=steps.align), how=how)
        for how in ("besa", "exact", "uniform")
    }
    for split in constant_splits(target, checkpoint, steps):
        widths = everywhere(split, checkpoint, [])
        name = f"{split['attention']} KV groups"
        plans[name] = plan_of(scores, checkpoint, target, widths, "uniform", [])
    for how in ("besa", "exact"):
        wanted = Wanted(align=steps.align, layout=PER_LAYER)
        own = allocate(scores, checkpoint, target, wanted, how=how)
        plans[f"{how}, own"] = own
    return plans


def measured_scores(
    stream: BlockStream, calibration: TokenSet, method: str, seed: int, repairs: list[str]
) -> dict[str, Scores]:
    """Scores with a landscape for each repair; what blocks learn does not depend on it."""
    checkpoint, found, learned = stream.checkpoint, {}, []
    fitted, _ = held_back(calibration)
    prices = Costs.of(checkpoint).prices["params"]
    learning = partial(learn_block, prices=prices, seed=seed, sampling="none")
    scores = score(checkpoint, method, None, calibration, stream, seed)
    for repair in repairs:
        landscape = measure_landscape(
            scores.blocks,
            stream,
            fitted,
            alignment(ANY, checkpoint, Wanted(), how="exact").lattice,
            repair,
            None if learned else learning,
        )
        learned = landscape.learned = learned or landscape.learned
        found[repair] = Scores(scores.blocks, scores.about)
        landscape.keep_with(found[repair])
    return found


def taken(losses: dict[str, float], own: bool) -> str:
    """What `compress` takes: of the uniform layout, or of all."""
    return min((n for n in losses if own or not n.endswith("own")), key=losses.__getitem__)


def main(
    model: Path,
    text: str,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
    calibration_range: str = "0:400",
    evaluation_range: str = "617:917",
    method: str = "llm-bip",
    samples: int = 64,
    seeds: int = 3,
    keep: Annotated[list[float] | None, typer.Option(help="Shares of the blocks.")] = None,
    repair: Annotated[list[str] | None, typer.Option(help="none, ridge, ...")] = None,
) -> None:
    keep, repair = keep or [0.8, 0.7], repair or ["none", "ridge"]
    checkpoint = Checkpoint(model)
    length = checkpoint.config["max_position_embeddings"]
    source, tokenizer = read_text(text), checkpoint.tokenizer()
    known, judged = (
        tokenize(source, tokenizer, length, None, span)
        for span in (calibration_range, evaluation_range)
    )
    stream = BlockStream(checkpoint, dtype=torch.float32)
    settings = {"source": checkpoint.fingerprint, "method": method, "samples": samples}
    settings |= {"calibration": named(known), "judged": named(judged)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{model.name}-{digest[:12]}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}

    def save() -> None:
        file.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")

    for seed in range(seeds):
        entries = {(k, r): rows.setdefault(f"{k:g} {r} {seed}", {}) for r in repair for k in keep}
        if all(row.get("done") for row in entries.values()):
            continue
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(known.sequences), generator=generator)[:samples].tolist()
        calibration = TokenSet([known.sequences[i] for i in drawn], known.protocol)
        cache = Path(tempfile.gettempdir()) / f"{file.stem}-{seed}"
        if not all(cache.with_suffix(f".{r}").exists() for r in repair):
            for r, found in measured_scores(stream, calibration, method, seed, repair).items():
                found.save(cache.with_suffix(f".{r}"))
        for (k, r), row in entries.items():
            if row.get("done"):
                continue
            plans = plans_of(
                Scores.load(cache.with_suffix(f".{r}")), checkpoint, Target("keep-blocks", k)
            )
            row["widths"] = {
                n: [f"{p.width_range('attention')} x {p.width_range('ffn')}"]
                for n, p in plans.items()
            }
            held = row.setdefault("held back", {})
            judge(
                stream, plans, calibration, r, held, lambda f, held=held: (held.update(f), save())
            )
            found = row.setdefault("perplexity", {})
            for name, plan in plans.items():
                twin = next((n for n in found if plans[n].blocks == plan.blocks), None)
                if name not in found:
                    found[name] = (
                        math.exp(loss_after(stream, plan, judged, calibration, r))
                        if twin is None
                        else found[twin]
                    )
                    save()
            row["done"] = True
            save()
        for r in repair:
            cache.with_suffix(f".{r}").unlink()
    table = Table(
        title=f"{model.name}, {method}, float32: perplexity after, median of {seeds} seeds"
    )
    table.add_column("allocation")
    columns = [(k, r) for r in repair for k in keep]
    for k, r in columns:
        table.add_column(f"keep {k:g}, {r}", justify="right")
    first = rows[f"{keep[0]:g} {repair[0]} 0"]["perplexity"]

    def cells(choose) -> list[str]:
        found = []
        for k, r in columns:
            runs = [rows[f"{k:g} {r} {seed}"] for seed in range(seeds)]
            values = [run["perplexity"].get(choose(run)) for run in runs]
            known = [v for v in values if v is not None]
            found.append(f"{statistics.median(known):.3f}" if known else "-")
        return found

    for name in first:
        table.add_row(name, *cells(lambda run, name=name: name))
    table.add_row("taken", *cells(lambda run: taken(run["held back"], own=False)))
    table.add_row("taken, own", *cells(lambda run: taken(run["held back"], own=True)))
    constant = lambda run: [v for n, v in run["perplexity"].items() if n.endswith("groups")]  # noqa: E731
    worst = []
    for k, r in columns:
        runs = [rows[f"{k:g} {r} {seed}"] for seed in range(seeds)]
        ratios = [
            run["perplexity"][taken(run["held back"], own=False)] / min(constant(run))
            for run in runs
        ]
        worst.append(f"{max(ratios):.3f}")
    table.add_row("taken / best constant, worst seed", *worst)
    table.caption = (
        f"calibration: {seeds} times {samples} of {describe(known.protocol)}\n"
        f"perplexity on {describe(judged.protocol)}"
    )
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
