"""The main job: read, score, plan, cut, write, verify, judge, publish.

Everything happens beside DEST (`DEST.partial`, `DEST.work`); DEST appears when it is complete and
verified. `DEST.work` holds the scores, the plans, the state of a training and the journal of what is
done until the end, so that an interrupted job can be resumed.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from compressor.errors import InputError, QualityError
from compressor.job import quantize as quantization
from compressor.job.checks import check_before_starting
from compressor.job.forecast import forecast
from compressor.job.judging import Judge
from compressor.job.keeping import keeping, open_work
from compressor.job.opening import open_stream
from compressor.job.planning import facts_of_widths, measure_cuts, plan_target
from compressor.job.progress import Lines, Meter
from compressor.job.reading import read_texts, reading_notes, tell_texts
from compressor.job.recover import (
    MERGED,
    adopt,
    agree_on_recovery,
    describe_data,
    read_recovery,
    recover_one,
)
from compressor.job.result import conclude, cut_one, open_repair, publish_results
from compressor.job.score_units import score_units
from compressor.job.settings import Settings, decisive, wanted_results
from compressor.job.sparsify import run as prune_weights
from compressor.model.checkpoint import Checkpoint
from compressor.report.card import write_card
from compressor.report.quantized import write_card as write_quantized_card


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

    def finished() -> bool:
        """Whether a result in `partial` is complete."""
        names = [name for name, _, _ in wanted_results(settings, checkpoint.family)]
        return any(journal.get(name) for name in names)

    with Meter() as meter, keeping(work, lines, partial, finished):
        run = prune_weights if settings.weights.single else _run
        if not settings.cuts:
            run = quantization.run
        results = run(settings, checkpoint, partial, work, journal, meter, lines)
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


def _run(settings, checkpoint, partial, work, journal, meter, lines) -> list[dict]:
    texts = read_texts(settings, checkpoint)
    calibration, evaluation = texts.calibration, texts.evaluation
    data = read_recovery(settings, checkpoint, texts.training)
    journal.agree("settings", decisive(settings, checkpoint, calibration, evaluation))
    agree_on_recovery(settings, data, work, journal)
    taught = data if settings.recovery.method == "distill" else None
    stream = open_stream(settings, checkpoint, work, calibration, evaluation, taught)
    tell_texts(lines, settings, checkpoint, calibration=calibration, evaluation=evaluation)
    if data is not None:
        lines.fact("recovery", describe_data(data.protocol))
    foreseen = forecast(settings, checkpoint, stream, texts, data)
    lines.forecast(foreseen)
    scores = score_units(settings, checkpoint, calibration, stream, meter, lines, work, journal)
    measure_cuts(settings, scores, stream, calibration, work, meter, lines)
    judge = Judge(settings, stream, evaluation, work, meter, lines)
    before = judge.before(journal)
    results, wanted = [], wanted_results(settings, checkpoint.family)
    for name, target, own in lines.each(wanted):
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
                judge,
                before,
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
                judge,
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
                judge,
                meter,
                lines,
            )
            journal.put(name, done)
            quantization.adopt(folder, done["files"])
            card = write_quantized_card
        conclude(settings, folder, result, done["record"], card)
        if len(wanted) > 1:
            result["dest"] = str(settings.dest / folder.name)
            result["dest"] += ".rejected" * (result["verified"] == "rejected")
        results.append(result)
    for result in results if len(results) > 1 else []:
        if result["verified"] == "rejected":
            final = partial / Path(result["dest"]).name
            shutil.rmtree(final, ignore_errors=True)
            final.with_suffix("").rename(final)
    publish_results(settings, results, partial, meter, foreseen)
    for result in results:
        result["warnings"] = [
            *reading_notes(settings, checkpoint, calibration, evaluation, data),
            *texts.notes,
            *scores.about["notes"],
            *result["warnings"],
        ]
    return results
