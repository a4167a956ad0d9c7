"""`compress SOURCE DEST --keep 0.7`: the whole job."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from compressor.arguments import (
    COUNTS,
    SIZES,
    parse_amount,
    parse_blocks,
    parse_ratio,
    spread_ratios,
    takes,
)
from compressor.console import console
from compressor.errors import CompressorError, InputError, MachineError, QualityError
from compressor.quantization.settings import Quantization
from compressor.recovery.settings import Recovery
from compressor.sparse.settings import DEFAULT_METHOD as DEFAULT_WEIGHT_METHOD
from compressor.sparse.settings import Weights

Source = Annotated[Path, typer.Argument(help="Checkpoint folder: config, safetensors, tokenizer.")]
Dest = Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")]
Option = typer.Option
HELP = {"help_option_names": ["-h", "--help"]}

job = typer.Typer(add_completion=False, context_settings=HELP, pretty_exceptions_enable=False)


@job.command()
@takes("recovery", Recovery, panel="Recovery")
@takes("quantization", Quantization, panel="Quantisation")
@takes("weights", Weights, panel="Single weights")
def compress(
    source: Source,
    dest: Dest,
    keep: Annotated[
        list[float], Option(help="Share of all parameters that stay; several: one folder each.")
    ] = [],  # noqa: B006
    keep_blocks: Annotated[
        list[float], Option(help="The same over the blocks' projections alone.")
    ] = [],  # noqa: B006
    target_params: Annotated[str | None, Option(help="Parameters to reach, such as 5.4B.")] = None,
    target_bytes: Annotated[str | None, Option(help="Bytes to reach, such as 11GB.")] = None,
    budget: Annotated[
        str,
        Option(
            help="What --keep and --keep-blocks are shares of: params, flops, or a JSON file of costs "
            "(of attention by KV groups, of FFN by channels)."
        ),
    ] = "params",
    method: Annotated[
        str | None,
        Option(
            help="llm-bip (default), besa, hywia, taylor, taylor-vector, taylor-mix, kfac, "
            "mask-fisher, wanda-sp, magnitude or random; of single weights besa (default), "
            "sparsegpt, wanda or magnitude."
        ),
    ] = None,
    mode: Annotated[str | None, Option(help="Variant of the method.")] = None,
    coarse: Annotated[str | None, Option(help="hywia: gate or vector.")] = None,
    fine: Annotated[str | None, Option(help="hywia: first, second or mix.")] = None,
    reduce: Annotated[
        str | None, Option(help="Gradient scores over coupled tensors: sum, mean, max, prod, last.")
    ] = None,
    allocate: Annotated[
        str | None,
        Option(
            help="uniform shares (default); exact: widths of the least measured errors; measured: the "
            "same with errors in nats of the model's loss; besa: learned ones (default of the method "
            "besa); all three judged by held-back text; or global: one ranking of all units (layout "
            "per-layer)."
        ),
    ] = None,
    layout: Annotated[
        str,
        Option(
            help="uniform: equal blocks, loads everywhere; per-layer: widths of their own, loads "
            "with trust_remote_code; padded: the same with zeros, for evaluation; all."
        ),
    ] = "uniform",
    container: Annotated[str, Option(help="auto, or the model type to write.")] = "auto",
    calibration: Annotated[
        str,
        Option(help="Text the scores are taken on: .txt, .json, .jsonl, stdlib, or a hub name."),
    ] = "stdlib",
    calibration_range: Annotated[str | None, Option(help="Its documents or windows A:B.")] = None,
    calibration_also: Annotated[
        str | None,
        Option(
            help="A second text, as many tokens of it: the model's own, which `generate` writes."
        ),
    ] = None,
    evaluation: Annotated[str | None, Option(help="Text for perplexity before and after.")] = None,
    evaluation_range: Annotated[str | None, Option(help="Its documents or windows A:B.")] = None,
    samples: Annotated[
        int | None,
        Option(help="Calibration sequences (as many as come to 65,536 tokens by default)."),
    ] = None,
    length: Annotated[int, Option(help="Tokens of a sequence.")] = 512,
    statistics: Annotated[
        str, Option(help="What blocks see while scoring: dense or pruned.")
    ] = "dense",
    select: Annotated[
        str | None,
        Option(
            help="What of equal widths stays: by score, or obs (what others cannot replace; the default "
            "where a repair refits them)."
        ),
    ] = None,
    kv_cost: Annotated[
        str, Option(help="KV groups by score, or measured: the loss without each.")
    ] = "score",
    repair: Annotated[
        str,
        Option(
            help="Refit what stays: ridge; refine (then train each block); ridge-local, bias, none."
        ),
    ] = "refine",
    refine_epochs: Annotated[
        int | None,
        Option(help="Passes over the calibration text in which refine trains a block (default 1)."),
    ] = None,
    align: Annotated[int | None, Option(help="FFN widths are multiples of this.")] = None,
    protect: Annotated[
        str, Option(help="Blocks left whole, such as 0,1,-1 (layout per-layer).")
    ] = "",
    tp: Annotated[int, Option(help="Tensor-parallel devices the widths must divide by.")] = 1,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_memory: Annotated[
        str | None,
        Option(help="Memory to count on, such as 8GB: what is too large beside it goes to files."),
    ] = None,
    work_dir: Annotated[
        Path | None, Option(help="Where scores and plans are kept meanwhile.")
    ] = None,
    seed: int = 0,
    max_perplexity_ratio: Annotated[
        str, Option(help="Reject a result worse than this; or off.")
    ] = "3",
    verify: Annotated[
        bool, Option(help="Reload the result in a fresh process and compare.")
    ] = True,
    resume: Annotated[bool, Option(help="Go on with an interrupted job.")] = False,
    overwrite: Annotated[bool, Option(help="Replace DEST.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, Option(help="No progress lines.")] = False,
    debug: Annotated[bool, Option(help="Show tracebacks.")] = False,
    *,
    quantization: Quantization,
    weights: Weights,
    recovery: Recovery,
) -> None:
    """Make a smaller dense checkpoint that loads anywhere."""
    from compressor.methods import default_allocation
    from compressor.pipeline import compress as run
    from compressor.plan import Target
    from compressor.progress import Lines
    from compressor.report import table, warnings
    from compressor.selection import default_selection
    from compressor.settings import DEFAULT_METHOD, Settings

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
        max_memory=int(parse_amount(max_memory, SIZES)) if max_memory else None,
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
    if weights.single:
        from compressor.sparse.report import table

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


def run(app: Callable, arguments: list[str]) -> int:
    """The exit code; every failure is a sentence on stderr."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    debug = "--debug" in arguments
    try:
        return app(args=spread_ratios(arguments), standalone_mode=True) or 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    except Exception as error:
        if debug or not (found := as_error(error)):
            raise
        console(stderr=True).print(f"compress: {found}", style="red")
        return found.exit_code
    except KeyboardInterrupt:
        print("compress: interrupted", file=sys.stderr)
        return 130


def as_error(error: BaseException) -> CompressorError | None:
    """A failure of the machine in our words; None for what is a bug."""
    if isinstance(error, CompressorError):
        return error
    if isinstance(error, OSError) or "os error 28" in str(error):  # safetensors on a full disk
        return MachineError(f"The system refused: {error}.")
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return MachineError(f"Memory ran out: {error}. Use fewer or shorter --samples.")
    return None


def main() -> None:
    """`compress`."""
    sys.exit(run(job, sys.argv[1:]))
