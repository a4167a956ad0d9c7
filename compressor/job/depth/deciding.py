"""How many blocks go when a target may be reached by depth and width together: the stage `depth`.

Three answers are tried: none, all that the target asks for, and half as many. Each is folded, cut to the
target by equal shares of the units' scores, repaired in one shot, and judged by the loss on held-back
text. Scores are those of the whole source.
"""

from dataclasses import replace

from compressor.config.choices import ALLOCATIONS
from compressor.config.repair import closed_form
from compressor.config.target import Target
from compressor.job.depth.checks import free_blocks
from compressor.job.depth.dropping import influence_of, shortened
from compressor.job.job import Job
from compressor.job.widths import wanted_widths
from compressor.measuring.guard import held_back, loss_after
from compressor.model.fewer_blocks import without
from compressor.planning.allocation import allocate
from compressor.planning.costs import CLOSE, Costs, miss_of
from compressor.scoring.influence import least
from compressor.scoring.scores import Scores

LOSSES = "losses by depth"  # of the journal


def decided(job: Job, scores: Scores) -> tuple[Job, Scores]:
    """The job on its source without as many blocks as lose least, and the scores of what is left."""
    (target,), journal = job.config.plan.targets, job.run.journal
    losses = journal.get(LOSSES) or {}
    ways = {str(len(dropped)): dropped for dropped in tried(job, target)}
    for count, dropped in ways.items():
        if count not in losses:
            losses[count] = loss_of(job, scores, target, dropped)
            journal.put(LOSSES, losses)
    best = min(ways, key=losses.__getitem__)
    if ways[best]:
        job, scores = shortened(job, ways[best]), sliced(scores, ways[best])
    depth = job.depth or {"influence": influence_of(job), "folded": []}
    return replace(job, depth=depth | {"losses": {count: losses[count] for count in ways}}), scores


def tried(job: Job, target: Target) -> list[list[int]]:
    """The blocks that each answer drops: those of the least influence."""
    free, influence = free_blocks(job.config.plan, job.checkpoint), influence_of(job)

    def dropping(count: int) -> list[int]:
        return least(influence, count, free)

    def leaves_enough(count: int) -> bool:
        part = without(job.checkpoint, dropping(count))
        costs = Costs.of(part, target.budget)
        return miss_of(target, costs, costs.size(part.block_units, target.measure)) >= -CLOSE

    most = 0
    while most < len(free) and leaves_enough(most + 1):
        most += 1
    return [dropping(count) for count in sorted({0, (most + 1) // 2, most})]


def loss_of(job: Job, scores: Scores, target: Target, dropped: list[int]) -> float:
    """Nats a token on held-back text without these blocks, and cut to the target."""
    config = job.config
    fitted, judged = held_back(job.calibration)
    shorter = replace(job, texts=replace(job.texts, calibration=fitted))
    if dropped:
        shorter = shortened(shorter, dropped)
    how = config.plan.allocate
    plan = allocate(
        sliced(scores, dropped),
        shorter.checkpoint,
        target,
        wanted_widths(config, job.wanted[0].layout),
        config.plan.protect,
        "uniform" if ALLOCATIONS[how].measured else how,
    )
    with job.run.stage("depth"):
        repair = closed_form(config.repair.kind)
        return loss_after(shorter.stream, plan, judged, fitted, repair)


def sliced(scores: Scores, dropped: list[int]) -> Scores:
    """The scores of the blocks that stay, unless these are that."""
    if scores.measured is not None or not dropped:  # measured of what stays, after the decision
        return scores

    def left(blocks: list) -> list:
        return [block for number, block in enumerate(blocks) if number not in dropped]

    parts, rates = (
        {name: left(blocks) for name, blocks in named.items()}
        for named in (scores.parts, scores.rates)
    )
    return replace(scores, blocks=left(scores.blocks), parts=parts, rates=rates)
