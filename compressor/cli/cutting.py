"""Stages that score, plan, draw and cut."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import Panels, check_folder, offers
from compressor.cli.compress import CALIBRATION
from compressor.config.job import JobConfig, job_config
from compressor.config.layouts import WriteConfig
from compressor.config.plan import PlanConfig
from compressor.config.repair import RepairConfig
from compressor.config.runtime import Runtime
from compressor.config.score import ScoreConfig
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.job.asked import check_applying, check_planning, check_scoring

WIDTHS = {PlanConfig: ("align", "protect", "tp"), WriteConfig: ("container",)}
SCORE: Panels = {
    "Scores": {ScoreConfig: ("method", "experts", "select", "kv_cost")},
    "For plans that measure": {
        PlanConfig: ("allocate", "align", "tp"),
        WriteConfig: ("container",),
        RepairConfig: ("repair",),
    },
    "Texts": {TextConfig: ("calibration", "samples", "length")},
    "Machine": {Runtime: ("device", "dtype", "seed")},
    "Job": {Runtime: ("resume",)},
}
PLAN: Panels = {"Widths": WIDTHS | {WriteConfig: ("layout", "container")}}
CUT: Panels = {
    "Writing": {WriteConfig: ("layout", "container")},
    "Repair": {RepairConfig: ("repair",)},
    "Texts": {TextConfig: ("calibration", "samples", "length")},
    "Machine": {Runtime: ("device", "dtype")},
    "Job": {Runtime: ("verify", "resume")},
}
Scored = Annotated[Path, typer.Argument(help="File of scores.")]
Moved = Annotated[
    Path | None,
    Option(help="The checkpoint, if it moved since scoring.", parser=flags.here),
]


@offers(SCORE, calibration=CALIBRATION)
def score(
    source: flags.Source, out: flags.Out, quiet: flags.Quiet = False, *, options: dict
) -> None:
    """Score every unit of SOURCE once, for any number of ratios."""
    check_folder(out)
    config = check_scoring(job_config(source, out, **options))
    from compressor.job.hub import at_hand
    from compressor.job.progress import Lines
    from compressor.job.score import score_file

    if (folder := at_hand(source)) != source:
        config = check_scoring(job_config(folder, out, **options))
    for note in score_file(config, Lines(quiet)):
        print(note)


@offers(PLAN)
def plan(
    scores: Scored,
    out: Annotated[Path, Option(help="Plan to write (JSON).")],
    source: Moved = None,
    keep: Annotated[list[float] | None, Option(help="Share of all parameters that stay.")] = None,
    keep_blocks: flags.KeepBlocks = None,
    target: flags.Target = None,
    budget: flags.Budget = "params",
    allocate: Annotated[
        str,
        Option(
            help="uniform; exact, measured or besa, where scores were made with it; or global: one "
            "ranking of the units of all blocks."
        ),
    ] = "uniform",
    *,
    options: dict,
) -> None:
    """Turn scores into the list of units that stay."""
    sizes = {"keep": keep, "keep_blocks": keep_blocks, "target": target, "budget": budget}
    config = check_planning(job_config(source or ".", out, allocate=allocate, **sizes, **options))
    from compressor.job.plan_scores import plan_scores
    from compressor.model.groups import unit_names
    from compressor.planning.told import plan_in_words
    from compressor.quantization.dense import open_source
    from compressor.scoring.scores import Scores

    loaded = Scores.load(scores)
    checkpoint = loaded.seen(open_source(source or loaded.place))
    made, alignment = plan_scores(loaded, checkpoint, config)
    made.save(out)
    named = unit_names(checkpoint.family)
    print(
        f"keep {made.about['keep_reached']:.4f} of all parameters, "
        f"{made.about['keep_blocks_reached']:.4f} of the blocks: "
        f"{made.width_range('attention')} {named['attention']}, "
        f"{made.width_range('ffn')} {named['ffn']} a block"
    )
    print("\n".join(plan_in_words(alignment, checkpoint, made.widths())))


def report(
    scores: Scored,
    out: Annotated[Path, Option(help="Picture to draw (PNG).")],
    source: Moved = None,
    keep: Annotated[float, Option(help="Share of all parameters that the shown cut keeps.")] = 0.7,
    align: Annotated[int | None, Option(help="FFN widths are multiples of this.")] = None,
    protect: Annotated[str, Option(help="Blocks left whole, such as 0,1,-1.")] = "",
    allocate: Annotated[str, Option(help="As in `compressor plan`.")] = "uniform",
) -> None:
    """Draw the scores and a cut, block by block."""
    check_folder(out)
    if out.suffix.lower() != ".png":
        raise InputError(f"The picture is a PNG, so name it *.png, not {out.name}.")
    config = job_config(source or ".", out, keep=keep, align=align, protect=protect)
    from compressor.planning.allocation import allocate as run
    from compressor.planning.lattice import Wanted, lattice
    from compressor.quantization.dense import open_source
    from compressor.report.drawing import draw
    from compressor.scoring.scores import Scores

    loaded = Scores.load(scores)
    checkpoint = loaded.seen(open_source(source or loaded.place))
    (target,), blocks = config.plan.targets, config.plan.protect
    made = run(loaded, checkpoint, target, Wanted(align), blocks, allocate)
    draw(out, loaded, made, checkpoint, lattice(checkpoint, made.about["align"]))


@offers(CUT, calibration=CALIBRATION)
def cut(
    source: flags.Source,
    dest: flags.Dest,
    plan: Annotated[Path, Option(help="Plan to apply, made for SOURCE or a model of its shape.")],
    quiet: flags.Quiet = False,
    *,
    options: dict,
) -> None:
    """Apply a plan to a checkpoint, and repair what stays."""
    config = JobConfig(source, dest).with_options(**options)
    parts = (config.text, config.repair, config.write, config.runtime)
    check_applying(source, dest, *parts)
    from compressor.job.apply_plan import apply_plan
    from compressor.job.hub import at_hand
    from compressor.job.progress import Lines
    from compressor.planning.plan import Plan

    print(apply_plan(at_hand(source), dest, Plan.load(plan), *parts, Lines(quiet)))
