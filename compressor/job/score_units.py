"""The scores of a job, by the method and then by the selection."""

import shutil
from pathlib import Path

from compressor.config.choices import needs_text
from compressor.job.keeping import SCORES
from compressor.job.settings import chosen_grains
from compressor.job.widths import open_alignment
from compressor.model.saved_blocks import count_blocks
from compressor.planning.allocation import protected
from compressor.planning.uniform import solve
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.scoring.selection import refined


def score_units(
    settings, checkpoint, calibration, stream, meter, lines, work: Path, journal
) -> Scores:
    """The scores by which units are chosen. What is done of them is kept in the work folder."""
    file, rated = work / SCORES, work / "rated.safetensors"
    if journal.get("scored"):
        return Scores.load(file)
    if journal.get("rated"):
        scores = Scores.load(rated)
    else:
        scores = rate(settings, checkpoint, calibration, stream, meter, lines, work / "score")
        scores.save(rated)
        journal.put("rated", True)
        shutil.rmtree(work / "score", ignore_errors=True)
    select, kv_cost = settings.select, settings.kv_cost
    if needs_text(select, kv_cost):
        saved = work / "select"
        with meter.stage("select"), lines.stage("select", count_blocks(saved)) as progress:
            scores = refined(scores, stream, calibration, select, kv_cost, progress, saved)
    scores.save(file)
    journal.put("scored", True)
    shutil.rmtree(work / "select", ignore_errors=True)
    return scores


def rate(settings, checkpoint, calibration, stream, meter, lines, saved: Path) -> Scores:
    """The scores of the method alone; finished blocks are kept in a folder."""
    kept_units = None
    if settings.statistics == "pruned":
        target = settings.targets[0]
        widths = open_alignment(settings, checkpoint, target).lattice
        protect = protected(settings.protect, checkpoint)
        kept_units = solve(target, checkpoint, widths, protect)
    with meter.stage("score"), lines.stage("score", count_blocks(saved)) as progress:
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
            saved,
        )
