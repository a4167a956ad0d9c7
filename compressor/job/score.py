"""The stage `score`: the first half of a job, whose outcome is a file."""

from dataclasses import replace

from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.job.checks import check_method
from compressor.job.job import begin_scoring
from compressor.job.planning import measure_cuts
from compressor.job.progress import Lines
from compressor.job.publishing import publish_file
from compressor.job.run import open_run
from compressor.job.score_units import score_units
from compressor.model.experts import with_units
from compressor.quantization.dense import open_source
from compressor.repairing.streaming import check_repair


def score_file(config: JobConfig, lines: Lines) -> list[str]:
    """Score the source into the file `config.dest`, which appears when it is complete; notes on it.

    What is done meanwhile is kept in a folder beside it, DEST.work.
    """
    checkpoint = with_units(open_source(config.source), config.score.experts)
    check_method(config.score, checkpoint)
    check_repair(config.repair.kind, None, checkpoint)
    if not ALLOCATIONS[config.plan.allocate].measured:  # nothing is refitted to measure it
        config = replace(config, repair=replace(config.repair, kind="none"))
    with open_run(config.dest, config.runtime, lines) as run:
        job = begin_scoring(config, checkpoint, run)
        scores = score_units(job)
        measure_cuts(job, scores)
        scores.save(run.partial)
        changed = publish_file(run.partial, config.dest, checkpoint)
    return [*job.notes, *scores.about["notes"], *changed]
