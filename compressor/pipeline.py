"""The main job: read, score, plan, cut, write, verify, judge, publish.

Everything happens beside DEST (`DEST.partial`, `DEST.work`); DEST appears when it is complete and
verified. `DEST.work` holds the scores and plans until the end.
"""

import shutil
import tempfile
from pathlib import Path

import psutil
import torch

from compressor import __version__
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, describe, read_text, tokenize
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, MachineError, QualityError
from compressor.evaluation import perplexity
from compressor.memory import trim_heap
from compressor.methods import METHODS
from compressor.plan import Plan, allocate, lattice, protected, solve
from compressor.repair import check_repair, check_text
from compressor.repair.streaming import Repair
from compressor.report import Lines, Meter, versions, write_card, write_record
from compressor.scoring import score
from compressor.settings import Settings, check_before_starting, chosen_grains, target_name
from compressor.verify import verify
from compressor.writing import publish, write

OFFLOAD_SHARE = 0.25  # activations beyond this share of the memory go to files


def compress(settings: Settings, lines: Lines) -> list[dict]:
    """Run the whole job; one result a target. `QualityError` after publishing as .rejected."""
    checkpoint = Checkpoint(settings.source)
    check_before_starting(settings, checkpoint)
    dest = settings.dest
    partial = dest.with_name(dest.name + ".partial")
    work = open_work(settings)
    shutil.rmtree(partial, ignore_errors=True)
    with Meter() as meter:
        try:
            results = _run(settings, checkpoint, partial, work, meter, lines)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not (work / "scores.safetensors").exists():
                shutil.rmtree(work, ignore_errors=True)
            raise
    shutil.rmtree(work, ignore_errors=True)
    rejected = [r for r in results if r["verified"] == "rejected"]
    if rejected:
        worst = rejected[-1]
        raise QualityError(
            f"Perplexity went from {worst['perplexity_before']:.3f} to "
            f"{worst['perplexity_after']:.3f}, more than {settings.max_perplexity_ratio:g} times; "
            f"the result is kept as {worst['dest']}. Keep more, or raise --max-perplexity-ratio."
        )
    return results


def open_work(settings: Settings) -> Path:
    """The work folder: DEST.work, or a new one inside --work-dir (which is the user's)."""
    if settings.work_dir is None:
        work = settings.dest.with_name(settings.dest.name + ".work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{settings.dest.name}.work-", dir=settings.work_dir))


def _run(settings, checkpoint, partial, work, meter, lines) -> list[dict]:
    calibration, evaluation = read_texts(settings, checkpoint)
    stream = open_stream(settings, checkpoint, work, calibration, evaluation)
    for label, tokens in (("calibration", calibration), ("evaluation", evaluation)):
        if tokens is not None:
            lines.console.print(f"{label:<12} {describe(tokens.protocol)}", highlight=False)
    kept_units = None
    if settings.statistics == "pruned":
        widths = lattice(checkpoint, settings.align, settings.tp, settings.container)
        protect = protected(settings.protect, checkpoint)
        kept_units = solve(settings.targets[0], checkpoint, widths, protect)
    with meter.stage("score"), lines.stage("score") as progress:
        scores = score(
            checkpoint,
            settings.method,
            settings.mode,
            calibration,
            stream,
            settings.seed,
            kept_units,
            progress,
            chosen_grains(settings),
        )
    scores.save(work / "scores.safetensors")
    before = None
    if evaluation is not None:
        with meter.stage("evaluate"), lines.stage("evaluate"):
            before = perplexity(stream, evaluation)
    results = []
    for target in settings.targets:
        name = target_name(target)
        folder = partial / name if len(settings.targets) > 1 else partial
        plan = allocate(
            scores,
            checkpoint,
            target,
            settings.align,
            settings.tp,
            settings.protect,
            settings.container,
        )
        plan.save(work / f"{name}.json")
        repair = open_repair(settings, stream, plan, calibration)
        result = cut_one(
            settings,
            checkpoint,
            plan,
            target,
            folder,
            work,
            before,
            evaluation,
            meter,
            lines,
            repair,
        )
        if len(settings.targets) > 1:
            result["dest"] = str(settings.dest / folder.name)
            if result["verified"] == "rejected":
                folder.rename(folder.with_name(folder.name + ".rejected"))
                result["dest"] += ".rejected"
        results.append(result)
    single_rejected = len(results) == 1 and results[0]["verified"] == "rejected"
    final = settings.dest
    if single_rejected:
        final = settings.dest.with_name(settings.dest.name + ".rejected")
        results[0]["dest"] = str(final)
    publish(partial, final)
    for result in results:
        result["warnings"] = position_notes(settings, checkpoint, calibration, evaluation) + (
            scores.about["notes"] + result["warnings"]
        )
        result["seconds"] = dict(meter.seconds)
        result["peak_rss_bytes"] = meter.peak_rss
        cuda = torch.cuda.is_available()
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0
    return results


def open_repair(settings, stream: BlockStream, plan: Plan, tokens: TokenSet) -> Repair | None:
    return None if settings.repair == "none" else Repair(stream, plan, tokens, settings.repair)


def cut_one(
    settings, checkpoint, plan: Plan, target, folder, work, before, evaluation, meter, lines, repair
):
    """Write one result, verify it and measure it; the folder is complete when this returns."""
    with meter.stage("write"), lines.stage("repair" if repair else "write") as progress:
        container = write(
            checkpoint,
            plan,
            folder,
            settings.layout,
            settings.container,
            progress=progress,
            changes=repair and meter.timed("repair", repair.blocks()),
        )
    result = {
        "source": str(checkpoint.path),
        "dest": str(settings.dest),
        "method": plan.about["scores"]["method"],
        "mode": plan.about["scores"]["mode"],
        "allocate": plan.about["allocate"],
        "repair": settings.repair,
        "layout": settings.layout,
        "container": container,
        "model_type": checkpoint.family.model_type,
        "keep_asked": f"{target.value:g}" if "keep" in target.kind else None,
        "keep_reached": plan.about["keep_reached"],
        "keep_blocks_reached": plan.about["keep_blocks_reached"],
        "parameters_before": checkpoint.parameters,
        "bytes_before": checkpoint.bytes,
        "perplexity_before": before and before["perplexity"],
        "perplexity_after": None,
        "seed": settings.seed,
        "warnings": repair.warnings if repair else [],
        "verified": "no",
    }
    if container != checkpoint.family.model_type:
        result["warnings"].append(
            f"Written as {container}: {checkpoint.family.model_type}'s config class refuses this "
            "number of heads; the tensors and the arithmetic are the same."
        )
    record = make_record(checkpoint, plan, settings.layout, container, repair)
    record["evaluation"] = evaluation and evaluation.protocol
    write_record(folder, record)
    trim_heap()
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify"):
            found = verify(folder, checkpoint.path)
        result["verified"] = f"logits within {found['logits_difference']:.1e}"
    written = Checkpoint(folder)
    result["parameters_after"], result["bytes_after"] = written.parameters, written.bytes
    if evaluation is not None:
        with meter.stage("evaluate"), lines.stage("evaluate"):
            after = perplexity(open_stream(settings, written, work, evaluation), evaluation)
        result["perplexity_after"] = after["perplexity"]
        ratio = after["perplexity"] / before["perplexity"]
        limit = settings.max_perplexity_ratio
        if limit is not None and not ratio <= limit:
            result["verified"] = "rejected"
    kept = ("keep_asked", "parameters_before", "parameters_after", "bytes_before", "bytes_after")
    record |= {name: result[name] for name in (*kept, "perplexity_before", "perplexity_after")}
    record["verified"] = result["verified"]
    write_record(folder, record)
    write_card(folder, result, record)
    return result


def apply_plan(settings: Settings, plan: Plan) -> str:
    """The stage `cut`: write a plan's result under DEST, verified; one sentence about it."""
    checkpoint, dest = Checkpoint(settings.source), settings.dest
    check_repair(settings.repair, checkpoint)
    if dest.exists():
        raise InputError(f"{dest} exists; choose another DEST.")
    calibration, _ = read_texts(settings, checkpoint)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        stream = open_stream(settings, checkpoint, dest.parent, calibration)
        repair = open_repair(settings, stream, plan, calibration)
        changes = repair and repair.blocks()
        layout, container = settings.layout, settings.container
        chosen = write(checkpoint, plan, partial, layout, container, changes=changes)
        write_record(partial, make_record(checkpoint, plan, layout, chosen, repair))
        difference = None
        if settings.verify:
            difference = verify(partial, settings.source)["logits_difference"]
        written = Checkpoint(partial)
        publish(partial, dest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    proof = "not verified" if difference is None else f"verified, logits within {difference:.1e}"
    found = f"{dest}: {written.parameters:,} of {checkpoint.parameters:,} parameters, {proof}"
    return "\n".join([found, *(repair.warnings if repair else [])])


def make_record(
    checkpoint: Checkpoint, plan: Plan, layout: str, container: str, repair: Repair | None = None
) -> dict:
    """What compression.json holds of every result."""
    return {
        "format": 1,
        "compressor": __version__,
        "source": {"name": checkpoint.path.name, "fingerprint": checkpoint.fingerprint},
        "plan": {"blocks": plan.blocks, "about": plan.about},
        "repair": repair and repair.about,
        "layout": layout,
        "container": container,
        "versions": versions(),
    }


def read_texts(settings, checkpoint) -> tuple[TokenSet | None, TokenSet | None]:
    """Calibration (if the method or the repair looks at activations) and evaluation (if asked for)."""
    tokenizer = None
    method = METHODS[settings.method]
    calibration = evaluation = None
    limit = min(settings.length, checkpoint.config.get("max_position_embeddings") or 1 << 30)
    if settings.repair != "none" or method.wants(method.check_mode(settings.mode)):
        tokenizer = checkpoint.tokenizer()
        text = read_text(settings.calibration)
        calibration = tokenize(text, tokenizer, limit, settings.samples, settings.calibration_range)
        check_text(settings.repair, calibration)
    if settings.evaluation is not None:
        tokenizer = tokenizer or checkpoint.tokenizer()
        text = read_text(settings.evaluation)
        evaluation = tokenize(text, tokenizer, limit, None, settings.evaluation_range)
    vocabulary = checkpoint.tensors[checkpoint.family.embedding].shape[0]
    for tokens in (calibration, evaluation):
        if tokens is not None and max(int(s.max()) for s in tokens.sequences) >= vocabulary:
            raise InputError(f"The tokenizer makes ids beyond the embedding's {vocabulary} rows.")
    return calibration, evaluation


def position_notes(settings, checkpoint, *tokens: TokenSet | None) -> list[str]:
    """A sentence if texts were cut because the model has fewer positions than --length."""
    positions = checkpoint.config.get("max_position_embeddings")
    if not positions or settings.length <= positions or not any(tokens):
        return []
    return [
        f"The model has {positions} positions, so texts were cut at {positions} tokens and not at "
        f"--length {settings.length}."
    ]


def open_stream(settings, checkpoint, offload: Path, *tokens: TokenSet | None) -> BlockStream:
    """A stream on the chosen device and dtype; activations go to files where memory is short."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(settings.dtype, checkpoint.dtype, device)
    memory = settings.max_memory or psutil.virtual_memory().available
    count = max((t.tokens for t in tokens if t is not None), default=0)
    # A backward keeps what enters every block; a forward what enters and leaves one; a repair's two
    # paths the streams before, within and after one.
    states = 2 if settings.repair == "none" else 6
    if METHODS[settings.method].observe is not None:
        states = max(states, checkpoint.blocks + 3)
    needed = states * count * checkpoint.hidden_size * dtype.itemsize
    use_files = needed > OFFLOAD_SHARE * memory
    try:
        return BlockStream(checkpoint, device, dtype, offload if use_files else None)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {device!r} cannot be used: {error}") from error


def compute_dtype(asked: str, stored: torch.dtype, device: str) -> torch.dtype:
    """`auto` is the stored dtype, but float32 for float16 on a CPU, which has no such units."""
    if asked == "auto":
        half_on_cpu = stored == torch.float16 and device == "cpu"
        return torch.float32 if half_on_cpu else stored
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked not in known:
        raise InputError(f"--dtype is auto, {', '.join(known)}, not {asked!r}.")
    return known[asked]
