"""`compress SOURCE DEST --keep 0.7`, and the single stages as `python -m compressor STAGE`."""

import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compressor.arguments import (
    COUNTS,
    SIZES,
    parse_amount,
    parse_blocks,
    parse_ratio,
    spread_ratios,
    takes,
)
from compressor.errors import CompressorError, InputError, MachineError
from compressor.recovery.settings import Recovery
from compressor.sparse.settings import DEFAULT_METHOD as DEFAULT_WEIGHT_METHOD
from compressor.sparse.settings import Weights

Source = Annotated[Path, typer.Argument(help="Checkpoint folder: config, safetensors, tokenizer.")]
Dest = Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")]
Option = typer.Option
HELP = {"help_option_names": ["-h", "--help"]}

job = typer.Typer(add_completion=False, context_settings=HELP, pretty_exceptions_enable=False)
stages = typer.Typer(
    add_completion=False,
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@job.command()
@stages.command()
@takes("recovery", Recovery, panel="Recovery")
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
    method: Annotated[
        str | None,
        Option(
            help="llm-bip (default), hywia, taylor, taylor-vector, taylor-mix, kfac, mask-fisher, "
            "wanda-sp, magnitude or random; of single weights besa (default), sparsegpt, wanda or "
            "magnitude."
        ),
    ] = None,
    mode: Annotated[str | None, Option(help="Variant of the method.")] = None,
    coarse: Annotated[str | None, Option(help="hywia: gate or vector.")] = None,
    fine: Annotated[str | None, Option(help="hywia: first, second or mix.")] = None,
    reduce: Annotated[
        str | None, Option(help="Gradient scores over coupled tensors: sum, mean, max, prod, last.")
    ] = None,
    allocate: Annotated[
        str, Option(help="uniform widths, or global: one ranking of all units (layout padded).")
    ] = "uniform",
    layout: Annotated[str, Option(help="uniform, or padded (zeros; for evaluation).")] = "uniform",
    container: Annotated[str, Option(help="auto, or the model type to write.")] = "auto",
    calibration: Annotated[
        str,
        Option(help="Text the scores are taken on: .txt, .json, .jsonl, stdlib, or a hub name."),
    ] = "stdlib",
    calibration_range: Annotated[str | None, Option(help="Its documents or windows A:B.")] = None,
    evaluation: Annotated[str | None, Option(help="Text for perplexity before and after.")] = None,
    evaluation_range: Annotated[str | None, Option(help="Its documents or windows A:B.")] = None,
    samples: Annotated[int, Option(help="Calibration sequences.")] = 128,
    length: Annotated[int, Option(help="Tokens of a sequence.")] = 512,
    statistics: Annotated[
        str, Option(help="What blocks see while scoring: dense or pruned.")
    ] = "dense",
    repair: Annotated[
        str, Option(help="Refit what stays, without training: ridge, ridge-local, bias or none.")
    ] = "ridge",
    align: Annotated[int | None, Option(help="FFN widths are multiples of this.")] = None,
    protect: Annotated[str, Option(help="Blocks left whole, such as 0,1,-1 (layout padded).")] = "",
    tp: Annotated[int, Option(help="Tensor-parallel devices the widths must divide by.")] = 1,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_memory: Annotated[str | None, Option(help="Memory to stay below, such as 8GB.")] = None,
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
    weights: Weights,
    recovery: Recovery,
) -> None:
    """Make a smaller dense checkpoint that loads anywhere."""
    from compressor.pipeline import compress as run
    from compressor.plan import Target
    from compressor.report import Lines, table
    from compressor.settings import DEFAULT_METHOD, Settings

    targets = [Target("keep", r) for r in keep] + [Target("keep-blocks", r) for r in keep_blocks]
    if target_params:
        targets.append(Target("params", parse_amount(target_params, COUNTS)))
    if target_bytes:
        targets.append(Target("bytes", parse_amount(target_bytes, SIZES)))
    if not targets and not weights.single:
        raise InputError("Say how small: --keep, --keep-blocks, --target-params or --target-bytes.")
    settings = Settings(
        source=source,
        dest=dest,
        targets=targets,
        method=method or (DEFAULT_WEIGHT_METHOD if weights.single else DEFAULT_METHOD),
        mode=mode,
        coarse=coarse,
        fine=fine,
        reduce=reduce,
        allocate=allocate,
        layout=layout,
        container=container,
        calibration=calibration,
        calibration_range=calibration_range,
        evaluation=evaluation,
        evaluation_range=evaluation_range,
        samples=samples,
        length=length,
        statistics=statistics,
        repair=repair,
        align=align,
        protect=parse_blocks(protect),
        tp=tp,
        device=device,
        dtype=dtype,
        max_memory=int(parse_amount(max_memory, SIZES)) if max_memory else None,
        work_dir=work_dir,
        seed=seed,
        weights=weights,
        recovery=recovery,
        resume=resume,
        overwrite=overwrite,
        verify=verify,
        max_perplexity_ratio=parse_ratio(max_perplexity_ratio),
    )
    results = run(settings, Lines(quiet or as_json))
    if as_json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
        return
    console = Console()
    if weights.single:
        from compressor.sparse.report import table
    console.print(table(results))
    for warning in dict.fromkeys(w for r in results for w in r["warnings"]):
        console.print(warning, highlight=False)


@stages.command()
def score(
    source: Source,
    out: Annotated[Path, Option(help="File of scores to write.")],
    method: str = "llm-bip",
    mode: str | None = None,
    coarse: str | None = None,
    fine: str | None = None,
    reduce: str | None = None,
    calibration: str = "stdlib",
    calibration_range: str | None = None,
    samples: int = 128,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """Score every unit of SOURCE once, for any number of ratios."""
    from compressor.checkpoint import Checkpoint
    from compressor.pipeline import open_stream, position_notes, read_texts
    from compressor.report import Lines
    from compressor.scoring import score as run
    from compressor.settings import Settings, check_method, chosen_grains

    settings = Settings(
        source=source,
        dest=out,
        targets=(),
        method=method,
        mode=mode,
        coarse=coarse,
        fine=fine,
        reduce=reduce,
        calibration=calibration,
        calibration_range=calibration_range,
        samples=samples,
        length=length,
        device=device,
        dtype=dtype,
        repair="none",
        seed=seed,
    )
    checkpoint = Checkpoint(source)
    check_method(settings, checkpoint)
    check_folder(out)
    tokens, _ = read_texts(settings, checkpoint)
    stream = open_stream(settings, checkpoint, out.parent, tokens)
    with Lines(quiet).stage("score") as progress:
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
        found.save(out)
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
    align: int | None = None,
    protect: str = "",
    tp: int = 1,
    container: str = "auto",
    allocate: Annotated[
        str, Option(help="uniform, or global (every block its own widths).")
    ] = "uniform",
) -> None:
    """Turn scores into the list of units that stay."""
    from compressor.allocation import allocate as run
    from compressor.checkpoint import Checkpoint
    from compressor.plan import Target
    from compressor.scores import Scores

    given = {
        "keep": keep,
        "keep-blocks": keep_blocks,
        "params": parse_amount(target_params, COUNTS) if target_params else None,
        "bytes": parse_amount(target_bytes, SIZES) if target_bytes else None,
    }
    targets = [Target(kind, value) for kind, value in given.items() if value is not None]
    if len(targets) != 1:
        raise InputError("Give one of --keep, --keep-blocks, --target-params, --target-bytes.")
    loaded = Scores.load(scores)
    checkpoint = Checkpoint(source or loaded.about["source"])
    blocks = parse_blocks(protect)
    made = run(loaded, checkpoint, targets[0], align, tp, blocks, container, allocate)
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
    repair: Annotated[str, Option(help="ridge, ridge-local, bias or none.")] = "ridge",
    calibration: Annotated[str, Option(help="Text the repair is fitted on.")] = "stdlib",
    calibration_range: str | None = None,
    samples: int = 128,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    verify: bool = True,
) -> None:
    """Apply a plan to a checkpoint, and repair what stays."""
    from compressor.pipeline import apply_plan
    from compressor.plan import Plan
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
    from compressor.checkpoint import Checkpoint
    from compressor.evaluation import perplexity
    from compressor.pipeline import open_stream, read_texts
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
    checkpoint = Checkpoint(folder)
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
        wide_console().print(shown, highlight=False, markup=False)


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
        wide_console().print(shown, highlight=False)


def wide_console() -> Console:
    """For tables of many columns: a pipe has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else 120)


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
        Console(stderr=True).print(f"compress: {found}", style="red", highlight=False, markup=False)
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
