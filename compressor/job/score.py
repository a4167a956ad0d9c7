"""The stage `score`: the first half of a job, whose outcome is a file."""

from dataclasses import replace

from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.job.checks import check_method
from compressor.job.job import begin_scoring, groups_of
from compressor.job.joining import joined
from compressor.job.needs import decisive, kept_states
from compressor.job.planning import measure_cuts
from compressor.job.progress import Lines
from compressor.job.publishing import publish_file
from compressor.job.run import open_run
from compressor.job.score_units import score_units
from compressor.job.sharing import check_same, follow
from compressor.model.experts import with_units
from compressor.quantization.dense import open_source
from compressor.repairing.streaming import check_repair


def score_file(config: JobConfig, lines: Lines) -> list[str]:
    """Score the source into the file `config.dest`, which appears when it is complete; notes on it.

    What is done meanwhile is kept in a folder beside it, DEST.work. Of several processes that torchrun
    has started the first one writes and has the notes; the others end here.
    """
    with joined(config.runtime) as ranks:
        checkpoint = with_units(open_source(config.source), config.score.experts)
        check_method(config.score, checkpoint)
        check_repair(config.repair.kind, None, checkpoint)
        if not ALLOCATIONS[config.plan.allocate].measured:  # nothing is refitted to measure it
            config = replace(config, repair=replace(config.repair, kind="none"))
        check_same(decisive(groups_of(config), checkpoint), ranks)
        if not ranks.first:
            states = kept_states(config, checkpoint.blocks)
            follow(checkpoint, config.runtime, config.dest, states, ranks)
        with open_run(config.dest, config.runtime, lines, ranks=ranks) as run:
            job = begin_scoring(config, checkpoint, run)
            scores = score_units(job)
            measure_cuts(job, scores)
            scores.save(run.partial)
            changed = publish_file(run.partial, config.dest, checkpoint)
    return [*job.notes, *scores.about["notes"], *changed]
