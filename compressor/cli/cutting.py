"""Stages that score, plan, draw and cut."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import check_folder, parse_blocks
from compressor.config.amounts import COUNTS, SIZES, parse_amount
from compressor.errors import InputError


def score(
    source: flags.Source,
    out: Annotated[Path, Option(help="File of scores to write.")],
    method: Annotated[str, Option(help="As of `compress`, for channels.")] = "llm-bip",
    mode: flags.Mode = None,
    coarse: flags.Coarse = None,
    fine: flags.Fine = None,
    reduce: flags.Reduce = None,
    select: flags.Select = None,
    kv_cost: flags.KvCost = "score",
    calibration: flags.Calibration = "stdlib",
    calibration_range: flags.Range = None,
    calibration_also: flags.CalibrationAlso = None,
    samples: flags.Samples = None,
    length: flags.Length = 512,
    device: flags.Device = None,
    dtype: flags.Dtype = "auto",
    allocate: Annotated[
        str | None, Option(help="Measure too what plan --allocate exact, measured or besa needs.")
    ] = None,
    repair: Annotated[str, Option(help="The repair that will follow.")] = "refine",
    besa_sampling: Annotated[
        str | None,
        Option(help="With besa: none (default), or categorical: each step's width is drawn."),
    ] = None,
    align: flags.Align = None,
    tp: flags.TensorParallel = 1,
    container: flags.Container = "auto",
    seed: flags.Seed = 0,
    resume: flags.Resume = False,
    quiet: flags.Quiet = False,
) -> None:
    """Score every unit of SOURCE once, for any number of ratios."""
    from compressor.config.choices import check_allocation, check_selection
    from compressor.config.repair import check_kind
    from compressor.config.sparse import Weights
    from compressor.job.asked import check_method_asked, check_source
    from compressor.job.destination import check_outside
    from compressor.job.resolve import default_selection
    from compressor.job.settings import Settings
    from compressor.scoring.methods import default_allocation

    settings = Settings(
        source=source,
        dest=out,
        targets=(),
        method=method,
        mode=mode,
        coarse=coarse,
        fine=fine,
        reduce=reduce,
        select=select or default_selection(method, repair),
        kv_cost=kv_cost,
        calibration=calibration,
        calibration_range=calibration_range,
        calibration_also=calibration_also,
        samples=samples,
        length=length,
        device=device,
        dtype=dtype,
        allocate=allocate or default_allocation(method),
        weights=Weights(sampling=besa_sampling),
        repair=repair,
        align=align,
        tp=tp,
        container=container,
        seed=seed,
        resume=resume,
    )
    check_method_asked(settings)
    check_allocation(settings.allocate)
    check_selection(settings.select, kv_cost)
    check_kind(repair, None)
    settings.weights.check(method)
    check_source(settings)
    check_folder(out)
    check_outside(out, source.resolve(), "OUT")
    from compressor.job.progress import Lines
    from compressor.job.score import score_file

    for note in score_file(settings, out, Lines(quiet)):
        print(note)


def plan(
    scores: Annotated[Path, typer.Argument(help="File of scores.")],
    out: Annotated[Path, Option(help="Plan to write (JSON).")],
    source: Annotated[
        Path | None, Option(help="The checkpoint, if it moved since scoring.")
    ] = None,
    keep: Annotated[float | None, Option(help="Share of all parameters that stay.")] = None,
    keep_blocks: Annotated[
        float | None, Option(help="The same over the blocks' projections alone.")
    ] = None,
    target_params: flags.TargetParams = None,
    target_bytes: flags.TargetBytes = None,
    budget: flags.Budget = "params",
    align: flags.Align = None,
    protect: flags.Protect = "",
    tp: flags.TensorParallel = 1,
    container: flags.Container = "auto",
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
    from compressor.config.choices import ALLOCATIONS, check_allocation, check_layout_name
    from compressor.job.asked import check_protect
    from compressor.model.checkpoint import Checkpoint
    from compressor.model.heads import choose_container
    from compressor.planning.allocation import alignment, protected
    from compressor.planning.allocation import allocate as run
    from compressor.planning.lattice import Wanted
    from compressor.planning.target import Target
    from compressor.planning.told import plan_in_words
    from compressor.planning.uniform import check_equal
    from compressor.scoring.scores import Scores

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
    check_allocation(allocate)
    equal = ALLOCATIONS[allocate].equal(alike)
    whole, wanted = protected(blocks, checkpoint), Wanted(align, tp, container, served=alike)
    given = alignment(targets[0], checkpoint, wanted, whole, allocate, loaded)
    if equal:
        check_protect(blocks, layout)
        check_equal(targets[0], checkpoint, given.lattice, whole)
    made = run(loaded, checkpoint, targets[0], align, tp, blocks, container, allocate, alike)
    if equal:
        choose_container(checkpoint, {w["attention"] for w in made.widths()}, container, alike)
    made.save(out)
    print(
        f"keep {made.about['keep_reached']:.4f} of all parameters, "
        f"{made.about['keep_blocks_reached']:.4f} of the blocks: "
        f"{made.width_range('attention')} KV groups, {made.width_range('ffn')} FFN channels a block"
    )
    print("\n".join(plan_in_words(given, checkpoint, made.widths())))


def report(
    scores: Annotated[Path, typer.Argument(help="File of scores.")],
    out: Annotated[Path, Option(help="Picture to draw (PNG).")],
    source: Annotated[
        Path | None, Option(help="The checkpoint, if it moved since scoring.")
    ] = None,
    keep: Annotated[float, Option(help="Share of all parameters that the shown cut keeps.")] = 0.7,
    align: flags.Align = None,
    protect: flags.Protect = "",
    allocate: Annotated[str, Option(help="As of `plan`.")] = "uniform",
) -> None:
    """Draw scores, fusion rates and a cut, block by block."""
    from compressor.model.checkpoint import Checkpoint
    from compressor.planning.allocation import allocate as run
    from compressor.planning.lattice import lattice
    from compressor.planning.target import Target
    from compressor.report.drawing import draw
    from compressor.scoring.scores import Scores

    check_folder(out)
    if out.suffix.lower() != ".png":
        raise InputError(f"The picture is a PNG, so name it *.png, not {out.name}.")
    loaded = Scores.load(scores)
    checkpoint = Checkpoint(source or loaded.about["source"])
    blocks = parse_blocks(protect)
    made = run(loaded, checkpoint, Target("keep", keep), align, protect=blocks, how=allocate)
    draw(out, loaded, made, checkpoint, lattice(checkpoint, made.about["align"]))


def cut(
    source: flags.Source,
    dest: flags.Dest,
    plan: Annotated[Path, Option(help="Plan to apply; SOURCE may be a sibling of the scored one.")],
    layout: flags.Layout = "uniform",
    container: flags.Container = "auto",
    repair: flags.Repair = "refine",
    refine_epochs: flags.RefineEpochs = None,
    calibration: flags.Calibration = "stdlib",
    calibration_range: flags.Range = None,
    calibration_also: flags.CalibrationAlso = None,
    samples: flags.Samples = None,
    length: flags.Length = 512,
    device: flags.Device = None,
    dtype: flags.Dtype = "auto",
    verify: flags.Verify = True,
    resume: flags.Resume = False,
    quiet: flags.Quiet = False,
) -> None:
    """Apply a plan to a checkpoint, and repair what stays."""
    from compressor.config.choices import check_layout_name
    from compressor.config.repair import check_kind
    from compressor.job.asked import check_method_asked, check_source
    from compressor.job.destination import check_dest
    from compressor.job.settings import Settings

    settings = Settings(
        source=source,
        dest=dest,
        targets=(),
        method="random",
        layout=layout,
        container=container,
        repair=repair,
        refine_epochs=refine_epochs,
        calibration=calibration,
        calibration_range=calibration_range,
        calibration_also=calibration_also,
        samples=samples,
        length=length,
        device=device,
        dtype=dtype,
        verify=verify,
        resume=resume,
    )
    check_method_asked(settings)
    check_layout_name(layout)
    check_kind(repair, refine_epochs)
    check_source(settings)
    check_dest(settings)
    from compressor.job.apply_plan import apply_plan
    from compressor.job.progress import Lines
    from compressor.planning.plan import Plan

    print(apply_plan(settings, Plan.load(plan), Lines(quiet)))
