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

from compressor.allocation import protected
from compressor.allocation.uniform import solve
from compressor.checkpoint import Checkpoint
from compressor.checks import check_before_starting
from compressor.errors import InputError, QualityError
from compressor.evaluation import perplexity
from compressor.journal import Journal
from compressor.opening import open_stream, position_notes, read_texts
from compressor.planning import facts_of_widths, measure_cuts, plan_target
from compressor.progress import Lines, Meter
from compressor.quantization import job as quantization
from compressor.quantization.report import write_card as write_quantized_card
from compressor.recovery.job import (
    MERGED,
    adopt,
    agree_on_recovery,
    describe_data,
    read_recovery,
    recover_one,
)
from compressor.report import write_card
from compressor.result import cut_one, judge, measure, open_repair, publish_results
from compressor.scores import Scores
from compressor.scoring import score
from compressor.selection import needs_text, refined
from compressor.settings import (
    Settings,
    chosen_grains,
    decisive,
    open_alignment,
    wanted_results,
)
from compressor.sparse.job import run as prune_weights


def compress(settings: Settings, lines: Lines) -> list[dict]:
    """Run the whole job; one result a target. `QualityError` after publishing as .rejected."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "compress runs in one process; cut without --recover, and then start "
            "`torchrun -m compressor recover` on the result."
        )
    checkpoint = Checkpoint(settings.source)
    check_before_starting(settings, checkpoint)
    if settings.cuts and not settings.weights.single:
        for label, said in facts_of_widths(settings, checkpoint):
            lines.fact(label, said)
    settings = replace(settings, recovery=settings.recovery.of_width(checkpoint.hidden_size))
    dest = settings.dest
    partial = dest.with_name(dest.name + ".partial")
    work, journal = open_work(settings)
    if not settings.resume:
        shutil.rmtree(partial, ignore_errors=True)
    with Meter() as meter:
        try:
            run = prune_weights if settings.weights.single else _run
            if not settings.cuts:
                run = quantization.run
            results = run(settings, checkpoint, partial, work, journal, meter, lines)
        except BaseException:
            if not any(
                journal.get(name) for name, _, _ in wanted_results(settings, checkpoint.family)
            ):
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
            f"the result is kept as {worst['dest']}. Keep more, or raise --max-perplexity-ratio.",
            results,
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
    """The work folder, new unless a job is resumed, and the journal in it.

    What an interrupted job has left there goes only where everything is to be replaced.
    """
    work = work_folder(settings)
    if settings.resume:
        return work, Journal.resume(work)
    if Journal.left_in(work) and not settings.overwrite:
        raise InputError(
            f"{work} holds what an interrupted job had done; add --resume to go on from there, or "
            "--overwrite to begin anew."
        )
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
    lines.texts(calibration=calibration, evaluation=evaluation)
    if data is not None:
        lines.fact("recovery", describe_data(data.protocol))
    if journal.get("scored"):
        scores = Scores.load(work / "scores.safetensors")
    else:
        scores = score_units(settings, checkpoint, calibration, stream, meter, lines)
        scores.save(work / "scores.safetensors")
        journal.put("scored", True)
    file, saved = work / "scores.safetensors", work / "landscape"
    measure_cuts(settings, scores, stream, calibration, file, meter, lines, saved)
    before = journal.get("before")
    if evaluation is not None and before is None:
        with meter.stage("evaluate"), lines.stage("evaluate"):
            before = perplexity(stream, evaluation)
        journal.put("before", before)
    results, wanted = [], wanted_results(settings, checkpoint.family)
    for name, target, own in wanted:
        folder = partial / name if len(wanted) > 1 else partial
        plan = plan_target(
            own, scores, checkpoint, target, stream, calibration, journal, meter, lines
        )
        plan.save(work / f"{name}.json")
        done = journal.get(name) if folder.exists() else None
        if done is None:
            shutil.rmtree(folder, ignore_errors=True)
            finished = work / "repair" / name
            result, record = cut_one(
                own,
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
                open_repair(settings, stream, plan, calibration, finished),
            )
            done = {"result": result, "record": record, "recovered": False}
            journal.put(name, done)
            shutil.rmtree(finished, ignore_errors=True)
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
        card = write_card
        if settings.quantization.wanted:
            quantization.quantize_one(
                settings,
                folder,
                work / name,
                done,
                calibration,
                lambda written: measure(settings, written, work, evaluation, meter, lines),
                meter,
                lines,
            )
            journal.put(name, done)
            quantization.adopt(folder, done["files"])
            card = write_quantized_card
        judge(settings, folder, result, done["record"], card)
        if len(wanted) > 1:
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


def score_units(settings, checkpoint, calibration, stream, meter, lines) -> Scores:
    kept_units = None
    if settings.statistics == "pruned":
        target = settings.targets[0]
        widths = open_alignment(settings, checkpoint, target).lattice
        protect = protected(settings.protect, checkpoint)
        kept_units = solve(target, checkpoint, widths, protect)
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
    select, kv_cost = settings.select, settings.kv_cost
    if not needs_text(select, kv_cost):
        return scores
    with meter.stage("select"), lines.stage("select") as progress:
        return refined(scores, stream, calibration, select, kv_cost, progress)
