"""The stage `plan`: from scores to the units that stay."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.config.layouts import UNIFORM
from compressor.job.job import Job
from compressor.job.needs import WantedResult
from compressor.job.planning import measure_cuts, plan_result
from compressor.job.progress import Lines
from compressor.job.reading import Texts
from compressor.job.run import open_run
from compressor.job.widths import wanted_widths
from compressor.model.groups import counts
from compressor.model.heads import choose_container
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.planning.alignment import Alignment
from compressor.planning.allocation import alignment, allocate, protected
from compressor.planning.plan import Plan
from compressor.planning.uniform import check_equal
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet


def plan_scores(scores: Scores, source: Source, config: JobConfig) -> tuple[Plan, Alignment]:
    """The plan of the config's one target, and the widths that it had to choose from."""
    (target,), how = config.plan.targets, config.plan.allocate
    wanted, protect = wanted_widths(config), protected(config.plan.protect, source)
    aligned = alignment(target, source, wanted, protect, how, scores)
    equal = ALLOCATIONS[how].equal(wanted.layout == UNIFORM)
    if equal:
        check_equal(target, source, aligned.lattice, protect)
    made = allocate(scores, source, target, wanted, config.plan.protect, how)
    if equal:
        groups = counts(made.widths(), "attention")
        choose_container(source, groups, wanted.container, wanted.layout)
    return made, aligned


def judged_plan(
    scores: Scores, config: JobConfig, stream: BlockStream, calibration: TokenSet
) -> Plan:
    """The plan that a job makes of its one target: what its allocation asks for is measured on the text
    and added to the scores, unless it is there, and a part of the text judges.
    """
    wanted = WantedResult("out", config.plan.targets[0], config.write.layout, [])
    with TemporaryDirectory() as place:
        config = replace(config, dest=Path(place) / wanted.name)
        with open_run(config.dest, config.runtime, Lines(quiet=True)) as run:
            texts = Texts(calibration)
            job = Job(config, stream.checkpoint, run, [wanted], texts, None, stream)
            measure_cuts(job, scores)
            return plan_result(job, wanted, scores)
