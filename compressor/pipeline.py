"""The main job: read, score, plan, cut, write, verify, judge, publish.

Everything happens beside DEST (`DEST.partial`, `DEST.work`); DEST appears when it is complete and
verified. `DEST.work` holds the scores, the plans, the state of a training and the journal of what is
done until the end, so that an interrupted job can be resumed.
"""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from compressor.allocation import allocate, protected, solve
from compressor.calibration import describe
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, QualityError
from compressor.evaluation import perplexity
from compressor.journal import Journal
from compressor.lattice import lattice
<<<<<<< HEAD
from compressor.memory import trim_heap
from compressor.plan import Plan
from compressor.recovery.job import MERGED, adopt, agree_on_recovery, read_recovery, recover_one
from compressor.repair import check_repair, check_text
from compressor.repair.streaming import Repair
from compressor.report import Lines, Meter, versions, write_card, write_record
=======
from compressor.opening import open_stream, position_notes, read_texts
from compressor.recovery.job import (
    MERGED,
    adopt,
    agree_on_recovery,
    describe_data,
    read_recovery,
    recover_one,
)
from compressor.report import Lines, Meter
from compressor.result import cut_one, judge, measure, open_repair
>>>>>>> main
from compressor.scores import Scores
from compressor.scoring import score
from compressor.settings import (
    Settings,
    check_before_starting,
    chosen_grains,
    decisive,
    target_name,
)
from compressor.writing import publish


def compress(settings: Settings, lines: Lines) -> list[dict]:
    """Run the whole job; one result a target. `QualityError` after publishing as .rejected."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "compress runs in one process; cut without --recover, and then start "
            "`torchrun -m compressor recover` on the result."
        )
    checkpoint = Checkpoint(settings.source)
    check_before_starting(settings, checkpoint)
    settings = replace(settings, recovery=settings.recovery.of_width(checkpoint.hidden_size))
    dest = settings.dest
    partial = dest.with_name(dest.name + ".partial")
    work, journal = open_work(settings)
    if not settings.resume:
        shutil.rmtree(partial, ignore_errors=True)
    with Meter() as meter:
        try:
            run = _run
            if settings.weights.single:
                from compressor.sparse.job import run  # which is made of this module's parts
            results = run(settings, checkpoint, partial, work, journal, meter, lines)
        except BaseException:
            if not any(journal.get(target_name(t)) for t in settings.targets):
                shutil.rmtree(partial, ignore_errors=True)
            if journal.get("scored") or journal.get("pruning"):
                lines.console.print(f"What is done is kept in {work}; --resume goes on from there.")
            else:
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


def work_folder(settings: Settings) -> Path:
    """DEST.work, or a folder of DEST's own in --work-dir (which is the user's)."""
    dest = settings.dest.absolute()
    if settings.work_dir is None:
        return dest.with_name(dest.name + ".work")
    digest = hashlib.sha256(str(dest).encode()).hexdigest()[:12]
    return settings.work_dir / f"{dest.name}.work-{digest}"


def open_work(settings: Settings) -> tuple[Path, Journal]:
    """The work folder, new unless a job is resumed, and the journal in it."""
    work = work_folder(settings)
    if settings.resume:
        return work, Journal.resume(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work, Journal(work, {})


def _run(settings, checkpoint, partial, work, journal, meter, lines) -> list[dict]:
    calibration, evaluation = read_texts(settings, checkpoint)
    data = read_recovery(settings, checkpoint)
    journal.agree("settings", decisive(settings, checkpoint, calibration, evaluation))
    agree_on_recovery(settings, data, work, journal)
    taught = data if settings.recovery.method == "distill" else None
    stream = open_stream(settings, checkpoint, work, calibration, evaluation, taught)
    for label, tokens in (("calibration", calibration), ("evaluation", evaluation)):
        if tokens is not None:
            lines.console.print(f"{label:<12} {describe(tokens.protocol)}", highlight=False)
    if data is not None:
        lines.console.print(f"{'recovery':<12} {describe_data(data.protocol)}", highlight=False)
    if journal.get("scored"):
        scores = Scores.load(work / "scores.safetensors")
    else:
        scores = score_units(settings, checkpoint, calibration, stream, meter, lines)
        scores.save(work / "scores.safetensors")
        journal.put("scored", True)
    before = journal.get("before")
    if evaluation is not None and before is None:
        with meter.stage("evaluate"), lines.stage("evaluate"):
            before = perplexity(stream, evaluation)
        journal.put("before", before)
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
            settings.allocate,
        )
        plan.save(work / f"{name}.json")
        done = journal.get(name) if folder.exists() else None
        if done is None:
            shutil.rmtree(folder, ignore_errors=True)
            result, record = cut_one(
                settings,
                checkpoint,
                scores,
                plan,
                target,
                folder,
                work,
                before,
                evaluation,
                meter,
                lines,
                open_repair(settings, stream, plan, calibration),
            )
            done = {"result": result, "record": record, "recovered": False}
            journal.put(name, done)
        if data is not None:
            recover_one(
                settings,
                data,
                folder,
                folder / MERGED,
                work / name,
                done,
                stream,
                lambda written: measure(settings, written, work, evaluation, meter, lines),
                meter,
                lines,
            )
            journal.put(name, done)
            adopt(folder)
        result = done["result"]
        judge(settings, folder, result, done["record"])
        if len(settings.targets) > 1:
            result["dest"] = str(settings.dest / folder.name)
            result["dest"] += ".rejected" * (result["verified"] == "rejected")
        results.append(result)
    for result in results if len(results) > 1 else []:
        if result["verified"] == "rejected":
            final = partial / Path(result["dest"]).name
            shutil.rmtree(final, ignore_errors=True)
            final.with_suffix("").rename(final)
    publish_results(settings, results, partial, meter)
    for result in results:
        result["warnings"] = position_notes(settings, checkpoint, calibration, evaluation, data) + (
            scores.about["notes"] + result["warnings"]
        )
    return results


def publish_results(settings, results: list[dict], partial: Path, meter: Meter) -> None:
    """Give the complete folder its name, and say in the results what the job took."""
    final = settings.dest
    if len(results) == 1 and results[0]["verified"] == "rejected":
        final = settings.dest.with_name(settings.dest.name + ".rejected")
        results[0]["dest"] = str(final)
    publish(partial, final)
    for result in results:
        result["seconds"] = dict(meter.seconds)
        result["peak_rss_bytes"] = meter.peak_rss
        cuda = torch.cuda.is_available()
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0


def score_units(settings, checkpoint, calibration, stream, meter, lines) -> Scores:
    kept_units = None
    if settings.statistics == "pruned":
        widths = lattice(checkpoint, settings.align, settings.tp, settings.container)
        protect = protected(settings.protect, checkpoint)
        kept_units = solve(settings.targets[0], checkpoint, widths, protect)
    with meter.stage("score"), lines.stage("score") as progress:
        return score(
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
<<<<<<< HEAD


def open_repair(settings, stream: BlockStream, plan: Plan, tokens: TokenSet) -> Repair | None:
    return None if settings.repair == "none" else Repair(stream, plan, tokens, settings.repair)


def cut_one(
    settings,
    checkpoint,
    scores,
    plan: Plan,
    target,
    folder,
    work,
    before,
    evaluation,
    meter,
    lines,
    repair,
) -> tuple[dict, dict]:
    """Write one result, verify it and measure it; what to say of it and its compression.json."""
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
        "perplexity_pruned": None,
        "perplexity_after": None,
        "seed": settings.seed,
        "recovery": None,
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
    with meter.stage("draw"):
        widths = lattice(checkpoint, settings.align, settings.tp, settings.container)
        try:
            draw(folder / PICTURE, scores, plan, checkpoint, widths)
        except MachineError as missing:
            result["warnings"].append(str(missing))
    result["perplexity_pruned"] = measure(settings, folder, work, evaluation, meter, lines)
    result["perplexity_after"] = result["perplexity_pruned"]
    return result, record


def measure(settings, folder: Path, work: Path, evaluation, meter, lines) -> float | None:
    """Perplexity of the checkpoint in a folder; None without an evaluation text."""
    if evaluation is None:
        return None
    with meter.stage("evaluate"), lines.stage("evaluate"):
        stream = open_stream(settings, Checkpoint(folder), work, evaluation)
        return perplexity(stream, evaluation)["perplexity"]


def judge(settings, folder: Path, result: dict, record: dict, write_card=write_card) -> None:
    """Hold the result against --max-perplexity-ratio; write its record and its card."""
    limit, after = settings.max_perplexity_ratio, result["perplexity_after"]
    measured = after is not None and limit is not None
    if measured and not after / result["perplexity_before"] <= limit:
        result["verified"] = "rejected"
    kept = ("keep_asked", "parameters_before", "parameters_after", "bytes_before", "bytes_after")
    perplexities = ("perplexity_before", "perplexity_pruned", "perplexity_after")
    names = (*kept, *perplexities, "verified")
    record |= {name: result[name] for name in names if name in result}
    write_record(folder, record)
    write_card(folder, result, record)


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
    calibration = evaluation = None
    limit = min(settings.length, checkpoint.config.get("max_position_embeddings") or 1 << 30)
    if settings.reads_calibration:
        tokenizer = checkpoint.tokenizer()
        text = read_text(settings.calibration)
        calibration = tokenize(text, tokenizer, limit, settings.samples, settings.calibration_range)
        if not settings.weights.single:
            check_text(settings.repair, calibration)
    if settings.evaluation is not None:
        tokenizer = tokenizer or checkpoint.tokenizer()
        text = read_text(settings.evaluation)
        evaluation = tokenize(text, tokenizer, limit, None, settings.evaluation_range)
    for tokens in (calibration, evaluation):
        if tokens is not None:
            check_ids(tokens.sequences, checkpoint.vocabulary)
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
    device = settings.on_device
    dtype = compute_dtype(settings.dtype, checkpoint.dtype, device)
    memory = settings.max_memory or psutil.virtual_memory().available
    count = max((t.tokens for t in tokens if t is not None), default=0)
    needed = (
        settings.kept_states(checkpoint.blocks) * count * checkpoint.hidden_size * dtype.itemsize
    )
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
=======
>>>>>>> main
