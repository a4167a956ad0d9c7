"""The scores of a job, by the method and then by the selection."""

import shutil
from functools import partial
from pathlib import Path

from compressor.config.score import ScoreConfig
from compressor.job.job import Job
from compressor.job.keeping import SCORES
from compressor.job.micro_batches import fitting
from compressor.job.needs import chosen_method, decisive, looks
from compressor.job.sharing import together
from compressor.job.widths import open_alignment
from compressor.model.passes import Passing
from compressor.model.saved_blocks import count_blocks
from compressor.model.stream import BlockStream
from compressor.planning.allocation import protected
from compressor.planning.uniform import solve
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.scoring.selection import looked_at, refined
from compressor.text.tokens import TokenSet


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
                make, text = partial(selected, asked, scores), job.calibration
                stream = together(run, job.stream, text, make)
                return make(stream, text, Passing(progress, saved))

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
    make = partial(rated, config.score, config.runtime.seed, kept_units)
    text = looked_at(job.calibration, config.score, checkpoint.units["ffn"])
    backward = chosen_method(config.score).observe is not None
    alone = backward or text is None or not looks(config.score)

    def found() -> Scores:
        with job.run.stage("score", count_blocks(saved)) as progress:
            stream = job.stream if alone else together(job.run, job.stream, text, make)
            return make(stream, text, Passing(progress, saved))

    if job.stream is None or backward:
        return found()  # no text, or one sequence at a time
    return fitting(job.run, job.stream, text, saved, found)


def rated(
    config: ScoreConfig,
    seed: int,
    kept_units: list[dict[str, int]] | None,
    stream: BlockStream,
    text: TokenSet | None,
    passing: Passing = Passing(),
) -> Scores:
    """The scores of the method alone, of any rank."""
    method = chosen_method(config)
    return score(stream.checkpoint, method, config.mode, text, stream, seed, kept_units, passing)


def selected(
    config: ScoreConfig,
    scores: Scores,
    stream: BlockStream,
    text: TokenSet,
    passing: Passing = Passing(),
) -> Scores:
    """The scores after the selection, of any rank."""
    return refined(scores, stream, text, config.select, config.kv_cost, passing)
