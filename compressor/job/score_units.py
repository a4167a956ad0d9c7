"""The scores of a job, by the method and then by the selection."""

import shutil
from pathlib import Path

from compressor.job.job import Job
from compressor.job.keeping import SCORES
from compressor.job.micro_batches import fitting
from compressor.job.needs import chosen_method, decisive
from compressor.job.widths import open_alignment
from compressor.model.passes import Passing
from compressor.model.saved_blocks import count_blocks
from compressor.planning.allocation import protected
from compressor.planning.uniform import solve
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.scoring.selection import looked_at, refined


def score_units(job: Job) -> Scores:
    """The scores by which units are chosen. What is done of them is kept in the work folder."""
    run, asked = job.run, job.config.score
    file, rated = run.work / SCORES, run.work / "rated.safetensors"
    decided = decides_scores(job)
    if not run.journal.get("scored") and (known := run.shelf.found(SCORES, decided)):
        run.lines.fact("scores", "those of another result of the sweep")
        shutil.copyfile(known, file)
        run.journal.put("scored", True)
    if run.journal.get("scored"):
        return Scores.load(file)
    if run.journal.get("rated"):
        scores = Scores.load(rated)
    else:
        scores = rate(job, run.work / "score")
        scores.save(rated)
        run.journal.put("rated", True)
        shutil.rmtree(run.work / "score", ignore_errors=True)
    if asked.needs_text:
        saved = run.work / "select"

        def select() -> Scores:
            with run.stage("select", count_blocks(saved)) as progress:
                passing, text = Passing(progress, saved), job.calibration
                return refined(scores, job.stream, text, asked.select, asked.kv_cost, passing)

        scores = fitting(run, job.stream, job.calibration, saved, select)
    scores.save(file)
    run.journal.put("scored", True)
    run.shelf.put(SCORES, decided, file)
    shutil.rmtree(run.work / "select", ignore_errors=True)
    return scores


def decides_scores(job: Job) -> dict[str, str] | None:
    """What the scores of a job come of; None where they are of its cut alone."""
    config, source = job.config, job.checkpoint
    if config.score.statistics == "pruned" or source.dropped or source.channels:
        return None
    groups = (config.text, config.score, config.runtime)
    return decisive(groups, source, job.calibration, job.evaluation)


def rate(job: Job, saved: Path) -> Scores:
    """The scores of the method alone; finished blocks are kept in a folder."""
    config, checkpoint, kept_units = job.config, job.checkpoint, None
    if config.score.statistics == "pruned":
        target = config.plan.targets[0]
        widths = open_alignment(config, checkpoint, target).lattice
        protect = protected(config.plan.protect, checkpoint)
        kept_units = solve(target, checkpoint, widths, protect)
    method, mode, seed = chosen_method(config.score), config.score.mode, config.runtime.seed
    text = looked_at(job.calibration, config.score, checkpoint.units["ffn"])

    def found() -> Scores:
        with job.run.stage("score", count_blocks(saved)) as progress:
            passing = Passing(progress, saved)
            return score(checkpoint, method, mode, text, job.stream, seed, kept_units, passing)

    if job.stream is None or method.observe is not None:
        return found()  # no text, or one sequence at a time
    return fitting(job.run, job.stream, text, saved, found)
