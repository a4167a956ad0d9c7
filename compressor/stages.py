"""The single stages: `python -m compressor STAGE`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compressor.arguments import (
    COUNTS,
    SIZES,
    parse_amount,
    parse_blocks,
    takes,
)
from compressor.cli import HELP, Dest, Option, Source, compress
from compressor.errors import InputError
from compressor.recovery.settings import Recovery

stages = typer.Typer(
    add_completion=False,
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
stages.command()(compress)


@stages.command()
def score(
    source: Source,
    out: Annotated[Path, Option(help="File of scores to write.")],
    method: str = "llm-bip",
    mode: str | None = None,
    coarse: str | None = None,
    fine: str | None = None,
    reduce: str | None = None,
    select: str = "score",
    kv_cost: str = "score",
    calibration: str = "stdlib",
    calibration_range: str | None = None,
    samples: int = 128,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    allocate: Annotated[
        str | None, Option(help="Measure too what plan --allocate exact, measured or besa needs.")
    ] = None,
    repair: Annotated[str, Option(help="The repair that will follow, for these.")] = "ridge",
    besa_sampling: str | None = None,
    align: int | None = None,
    tp: int = 1,
    container: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """Score every unit of SOURCE once, for any number of ratios."""
    from compressor.allocation import ALLOCATIONS, check_allocation
    from compressor.checkpoint import Checkpoint
    from compressor.checks import check_method
    from compressor.methods import default_allocation
    from compressor.opening import open_stream, position_notes, read_texts
    from compressor.planning import measure_cuts
    from compressor.repair import check_repair
    from compressor.report import Lines, Meter
    from compressor.scoring import score as run
    from compressor.selection import check_selection, needs_text, refined
    from compressor.settings import Settings, chosen_grains
    from compressor.sparse.settings import Weights

    allocate = allocate or default_allocation(method)
    check_allocation(allocate)
    settings = Settings(
        source=source,
        dest=out,
        targets=(),
        method=method,
        mode=mode,
        coarse=coarse,
        fine=fine,
        reduce=reduce,
        select=select,
        kv_cost=kv_cost,
        calibration=calibration,
        calibration_range=calibration_range,
        samples=samples,
        length=length,
        device=device,
        dtype=dtype,
        allocate=allocate,
        weights=Weights(sampling=besa_sampling),
        repair=repair if ALLOCATIONS[allocate].measured else "none",
        align=align,
        tp=tp,
        container=container,
        seed=seed,
    )
    checkpoint = Checkpoint(source)
    check_method(settings, checkpoint)
    check_selection(select, kv_cost)
    check_repair(settings.repair, checkpoint)
    settings.weights.check(method)
    check_folder(out)
    tokens, _ = read_texts(settings, checkpoint)
    stream = open_stream(settings, checkpoint, out.parent, tokens)
    lines = Lines(quiet)
    with lines.stage("score") as progress:
        found = run(
            checkpoint,
            method,
            mode,
            tokens,
            stream,
            seed,
            progress=progress,
            grains=chosen_grains(settings),
        )
        if needs_text(select, kv_cost):
            found = refined(found, stream, tokens, select, kv_cost, progress)
        found.save(out)
    measure_cuts(settings, found, stream, tokens, out, Meter(), lines)
    for note in position_notes(settings, checkpoint, tokens) + found.about["notes"]:
        print(note)


@stages.command()
def plan(
    scores: Annotated[Path, typer.Argument(help="File of scores.")],
    out: Annotated[Path, Option(help="Plan to write (JSON).")],
    source: Annotated[
        Path | None, Option(help="The checkpoint, if it moved since scoring.")
    ] = None,
    keep: float | None = None,
    keep_blocks: float | None = None,
    target_params: str | None = None,
    target_bytes: str | None = None,
    budget: Annotated[
        str,
        Option(
            help="What --keep and --keep-blocks are shares of: params, flops, or a JSON file of costs "
            "(of attention by KV groups, of FFN by channels)."
        ),
    ] = "params",
    align: int | None = None,
    protect: str = "",
    tp: int = 1,
    container: str = "auto",
    allocate: Annotated[
        str,
        Option(
            help="uniform, exact, measured or besa (of scores made for it), or global (every block its "
            "own)."
        ),
    ] = "uniform",
    layout: Annotated[
        str,
        Option(
            help="per-layer or padded: exact, measured and besa may give every block its own widths."
        ),
    ] = "uniform",
) -> None:
    """Turn scores into the list of units that stay."""
    from compressor.allocation import allocate as run
    from compressor.checkpoint import Checkpoint
    from compressor.plan import Target
    from compressor.scores import Scores
    from compressor.writing import check_layout_name

    given = {
        "keep": keep,
        "keep-blocks": keep_blocks,
        "params": parse_amount(target_params, COUNTS) if target_params else None,
        "bytes": parse_amount(target_bytes, SIZES) if target_bytes else None,
    }
    targets = [Target(kind, value, budget) for kind, value in given.items() if value is not None]
    if len(targets) != 1:
        raise InputError("Give one of --keep, --keep-blocks, --target-params, --target-bytes.")
    loaded = Scores.load(scores)
    checkpoint = Checkpoint(source or loaded.about["source"])
    blocks = parse_blocks(protect)
    check_layout_name(layout)
    alike = layout == "uniform"
    made = run(loaded, checkpoint, targets[0], align, tp, blocks, container, allocate, alike)
    made.save(out)
    print(
        f"keep {made.about['keep_reached']:.4f} of all parameters, "
        f"{made.about['keep_blocks_reached']:.4f} of the blocks: "
        f"{made.width_range('attention')} KV groups, {made.width_range('ffn')} FFN channels a block"
    )


@stages.command()
def report(
    scores: Annotated[Path, typer.Argument(help="File of scores.")],
    out: Annotated[Path, Option(help="Picture to draw (PNG).")],
    source: Annotated[
        Path | None, Option(help="The checkpoint, if it moved since scoring.")
    ] = None,
    keep: Annotated[float, Option(help="Share of all parameters that the shown cut keeps.")] = 0.7,
    align: int | None = None,
    protect: str = "",
    allocate: str = "uniform",
) -> None:
    """Draw scores, fusion rates and a cut, block by block."""
    from compressor.allocation import allocate as run
    from compressor.checkpoint import Checkpoint
    from compressor.drawing import draw
    from compressor.lattice import lattice
    from compressor.plan import Target
    from compressor.scores import Scores

    check_folder(out)
    loaded = Scores.load(scores)
    checkpoint = Checkpoint(source or loaded.about["source"])
    blocks = parse_blocks(protect)
    made = run(loaded, checkpoint, Target("keep", keep), align, protect=blocks, how=allocate)
    draw(out, loaded, made, checkpoint, lattice(checkpoint, align))


@stages.command()
def cut(
    source: Source,
    dest: Dest,
    plan: Annotated[Path, Option(help="Plan to apply; SOURCE may be a sibling of the scored one.")],
    layout: str = "uniform",
    container: str = "auto",
    repair: Annotated[str, Option(help="ridge, refine, ridge-local, bias or none.")] = "ridge",
    calibration: Annotated[str, Option(help="Text the repair is fitted on.")] = "stdlib",
    calibration_range: str | None = None,
    samples: int = 128,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    verify: bool = True,
) -> None:
    """Apply a plan to a checkpoint, and repair what stays."""
    from compressor.plan import Plan
    from compressor.result import apply_plan
    from compressor.settings import Settings

    settings = Settings(
        source=source,
        dest=dest,
        targets=(),
        method="random",
        layout=layout,
        container=container,
        repair=repair,
        calibration=calibration,
        calibration_range=calibration_range,
        samples=samples,
        length=length,
        device=device,
        dtype=dtype,
        verify=verify,
    )
    print(apply_plan(settings, Plan.load(plan)))


@stages.command()
@takes("recovery", Recovery, panel="Recovery")
def recover(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that was cut before.")],
    dest: Dest,
    source: Annotated[Path | None, Option(help="The uncut one, for distill to learn from.")] = None,
    calibration: Annotated[str, Option(help="Text to train on.")] = "stdlib",
    calibration_range: str | None = None,
    evaluation: str | None = None,
    evaluation_range: str | None = None,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    max_memory: str | None = None,
    work_dir: Path | None = None,
    seed: int = 0,
    verify: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    *,
    recovery: Recovery,
) -> None:
    """Train a cut checkpoint; with torchrun on several GPUs."""
    from dataclasses import replace

    from compressor.recovery.alone import recover_folder
    from compressor.report import Lines
    from compressor.settings import Settings

    settings = Settings(
        source=folder,
        dest=dest,
        targets=(),
        method="random",
        calibration=calibration,
        calibration_range=calibration_range,
        evaluation=evaluation,
        evaluation_range=evaluation_range,
        length=length,
        device=device,
        dtype=dtype,
        max_memory=int(parse_amount(max_memory, SIZES)) if max_memory else None,
        work_dir=work_dir,
        seed=seed,
        recovery=replace(recovery, method="lora") if recovery.method == "none" else recovery,
        resume=resume,
        overwrite=overwrite,
        verify=verify,
    )
    if found := recover_folder(settings, source, Lines(quiet)):
        print(json.dumps(found, indent=1))


@stages.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder to verify.")],
    source: Annotated[Path | None, Option(help="Compare logits with this, masked.")] = None,
) -> None:
    """Load a folder with plain transformers in a fresh process; compare it with its source."""
    from compressor.verify import verify as run

    print(json.dumps(run(folder, source), indent=1))


@stages.command("eval")
def evaluate(
    folder: Source,
    text: Annotated[str, Option(help="Text as for --evaluation.")],
    length: int = 512,
    span: Annotated[str | None, Option("--range", help="Documents or windows A:B.")] = None,
    device: str | None = None,
    dtype: str = "auto",
    as_json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Perplexity of a checkpoint, streamed block by block."""
    from compressor.calibration import describe
    from compressor.evaluation import perplexity
    from compressor.opening import open_stream, read_texts
    from compressor.quantization.reading import open_model
    from compressor.settings import Settings

    settings = Settings(
        source=folder,
        dest=folder,
        targets=(),
        method="random",
        repair="none",
        evaluation=text,
        evaluation_range=span,
        length=length,
        device=device,
        dtype=dtype,
    )
    checkpoint = open_model(folder)
    _, tokens = read_texts(settings, checkpoint)
    stream = open_stream(settings, checkpoint, Path(tempfile.gettempdir()), tokens)
    found = perplexity(stream, tokens)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print(f"perplexity {found['perplexity']:.4f}  ({describe(found['protocol'])})")


def check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.absolute().parent} to write {out.name} to.")


@stages.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Any folder with a config or safetensors.")],
    as_json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Widths of every block, sizes, and what loads the folder, with the number that decides."""
    from compressor.inspection import inspect as run
    from compressor.inspection import tables

    result = run(folder)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for shown in tables(result):
        wide_console().print(shown)


@stages.command()
def estimate(
    folder: Source,
    before: Annotated[Path | None, Option(help="The checkpoint it was made from.")] = None,
    device: Annotated[
        str | None, Option(help="h200, a100, rtx4090; cpu or cuda of this machine are measured.")
    ] = None,
    batch: Annotated[int, Option(help="Sequences at a time.")] = 1,
    context: Annotated[int | None, Option(help="Tokens of a prompt and in the cache.")] = None,
    measure: Annotated[bool, Option(help="Time both on this machine.")] = False,
    as_json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Parameters, bytes, FLOPs, KV cache and roofline times, block by block."""
    from compressor.estimate import estimate as run
    from compressor.estimate.tables import tables
    from compressor.report import Lines

    with Lines(as_json).stage("estimate") as progress:
        result = run(folder, before, device, batch, context, measure, progress)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for shown in tables(result):
        wide_console().print(shown)


def wide_console() -> Console:
    """For tables of many columns: a pipe has no width of its own."""
    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False, markup=False)
