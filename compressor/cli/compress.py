"""`compress SOURCE DEST --keep 0.7`: the whole job."""

import json
from dataclasses import replace
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags, running
from compressor.cli.arguments import parse_blocks, parse_ratio, takes
from compressor.config.amounts import COUNTS, SIZES, parse_amount
from compressor.config.quantization import Quantization
from compressor.config.recovery import Recovery
from compressor.config.sparse import DEFAULT_METHOD as DEFAULT_WEIGHT_METHOD
from compressor.config.sparse import Weights
from compressor.errors import InputError, QualityError
from compressor.job.console import console

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(add_completion=False, context_settings=HELP, pretty_exceptions_enable=False)


@app.command()
@takes("recovery", Recovery, panel="Recovery")
@takes("quantization", Quantization, panel="Quantisation")
@takes("weights", Weights, panel="Single weights")
def compress(
    source: flags.Source,
    dest: flags.Dest,
    keep: Annotated[
        list[float], Option(help="Share of all parameters that stay; several: one folder each.")
    ] = [],  # noqa: B006
    keep_blocks: Annotated[
        list[float], Option(help="The same over the blocks' projections alone.")
    ] = [],  # noqa: B006
    target_params: flags.TargetParams = None,
    target_bytes: flags.TargetBytes = None,
    budget: flags.Budget = "params",
    method: Annotated[
        str | None,
        Option(
            help="llm-bip (default), besa, hywia, taylor, taylor-vector, taylor-mix, kfac, "
            "mask-fisher, wanda-sp, magnitude or random; of single weights besa (default), "
            "sparsegpt, wanda or magnitude."
        ),
    ] = None,
    mode: flags.Mode = None,
    coarse: flags.Coarse = None,
    fine: flags.Fine = None,
    reduce: flags.Reduce = None,
    allocate: Annotated[
        str | None,
        Option(
            help="uniform shares (default); exact: widths of the least measured errors; measured: the "
            "same with errors in nats of the model's loss; besa: learned ones (default of the method "
            "besa); all three judged by held-back text; or global: one ranking of all units (layout "
            "per-layer)."
        ),
    ] = None,
    layout: flags.Layout = "uniform",
    container: flags.Container = "auto",
    calibration: flags.Calibration = "stdlib",
    calibration_range: flags.Range = None,
    calibration_also: flags.CalibrationAlso = None,
    evaluation: flags.Evaluation = None,
    evaluation_range: flags.Range = None,
    samples: flags.Samples = None,
    length: flags.Length = 512,
    statistics: Annotated[
        str, Option(help="What blocks see while scoring: dense or pruned.")
    ] = "dense",
    select: flags.Select = None,
    kv_cost: flags.KvCost = "score",
    repair: flags.Repair = "refine",
    refine_epochs: flags.RefineEpochs = None,
    align: flags.Align = None,
    protect: flags.Protect = "",
    tp: flags.TensorParallel = 1,
    device: flags.Device = None,
    dtype: flags.Dtype = "auto",
    max_memory: flags.MaxMemory = None,
    work_dir: flags.WorkDir = None,
    seed: flags.Seed = 0,
    max_perplexity_ratio: Annotated[
        str, Option(help="Reject a result worse than this; or off.")
    ] = "3",
    verify: flags.Verify = True,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: Annotated[bool, Option(help="Show tracebacks.")] = False,
    *,
    quantization: Quantization,
    weights: Weights,
    recovery: Recovery,
) -> None:
    """Make a smaller dense checkpoint that loads anywhere."""
    from compressor.job.asked import check_asked
    from compressor.job.resolve import default_selection
    from compressor.job.settings import Settings
    from compressor.planning.target import Target
    from compressor.scoring.methods import DEFAULT_METHOD, default_allocation

    shares = [("keep", r) for r in keep] + [("keep-blocks", r) for r in keep_blocks]
    targets = [Target(kind, share, budget) for kind, share in shares]
    if target_params:
        targets.append(Target("params", parse_amount(target_params, COUNTS), budget))
    if target_bytes:
        targets.append(Target("bytes", parse_amount(target_bytes, SIZES), budget))
    if budget != "params" and not targets:
        raise InputError(f"--budget {budget} needs --keep or --keep-blocks, which it counts.")
    if not targets and not weights.single and not quantization.wanted:
        raise InputError(
            "Say how small: --keep, --keep-blocks, --target-params or --target-bytes; or, for zeros "
            "in the place of weights, --granularity weight and --sparsity; or, for 4-bit weights, "
            "--quantize w4a16."
        )
    chosen = method or (DEFAULT_WEIGHT_METHOD if weights.single else DEFAULT_METHOD)
    settings = Settings(
        source=source,
        dest=dest,
        targets=targets,
        method=chosen,
        mode=mode,
        coarse=coarse,
        fine=fine,
        reduce=reduce,
        allocate=allocate or "uniform",
        layout=layout,
        container=container,
        calibration=calibration,
        calibration_range=calibration_range,
        calibration_also=calibration_also,
        evaluation=evaluation,
        evaluation_range=evaluation_range,
        samples=samples,
        length=length,
        statistics=statistics,
        select=select or "score",
        kv_cost=kv_cost,
        repair=repair,
        refine_epochs=refine_epochs,
        align=align,
        protect=parse_blocks(protect),
        tp=tp,
        device=device,
        dtype=dtype,
        max_memory=parse_amount(max_memory, SIZES) if max_memory else None,
        work_dir=work_dir,
        seed=seed,
        quantization=quantization,
        weights=weights,
        recovery=recovery,
        resume=resume,
        overwrite=overwrite,
        verify=verify,
        max_perplexity_ratio=parse_ratio(max_perplexity_ratio),
    )
    if settings.cuts and not weights.single:
        settings = replace(
            settings,
            allocate=allocate or default_allocation(method),
            select=select or default_selection(chosen, repair),
        )
    check_asked(settings)  # at once: from here on torch is imported, which takes seconds
    from compressor.job.compress import compress as run
    from compressor.job.progress import Lines
    from compressor.report.table import warnings

    if weights.single:
        from compressor.report.sparse import table
    else:
        from compressor.report.table import table

    def show(results: list[dict]) -> None:
        if as_json:
            print(json.dumps(results if len(results) > 1 else results[0], indent=1))
            return
        out = console()
        out.print(table(results))
        for warning in warnings(results):
            out.print(warning)

    try:
        show(run(settings, Lines(quiet or as_json)))
    except QualityError as error:
        if error.results:
            show(error.results)
        raise


def main() -> None:
    """The console command `compress`."""
    running.main(app)
