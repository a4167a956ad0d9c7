"""Which blocks a job drops, and what is left of its source: the stages `influence`, `choose` and `fold`.

What is found out is kept in the work folder, so that a resumed job goes on with the same blocks.
"""

from dataclasses import replace

from safetensors.torch import load_file, save_file

from compressor.config.choices import ALLOCATIONS
from compressor.job.checks import solved_results
from compressor.job.depth.checks import free_blocks
from compressor.job.job import Job
from compressor.job.micro_batches import fitting
from compressor.job.run import Run
from compressor.measuring.depth import judged_drops
from compressor.measuring.guard import held_back
from compressor.model.fewer_blocks import FewerBlocks
from compressor.model.passes import Passing
from compressor.model.saved_blocks import count_blocks
from compressor.model.stream import BlockStream
from compressor.repairing.folding import Folded, fold
from compressor.scoring.influence import influences, least
from compressor.text.tokens import TokenSet

# Entries of the journal.
INFLUENCE, CHOSEN, TRIED = "influence", "dropped blocks", "losses without blocks"


def shortened(job: Job, dropped: list[int]) -> Job:
    """The job on its source without these blocks, which are folded if that was asked for."""
    text = job.calibration if job.config.plan.fold else None
    part = folded_source(job.run, job.stream, dropped, text)
    depth = {"influence": influence_of(job), "folded": part.record}
    if (losses := job.run.journal.get(TRIED)) is not None:
        depth["tried"] = losses
    return replace(
        job,
        checkpoint=part,
        stream=job.stream.without(part),
        wanted=solved_results(job.config, part),
        depth=depth,
    )


def chosen_blocks(job: Job) -> list[int]:
    """As many as are to be dropped: those of the least influence or, where allocations are measured,
    those without which the loss is the least.
    """
    plan, journal = job.config.plan, job.run.journal
    if (known := journal.get(CHOSEN)) is not None:
        return known
    free, count = free_blocks(plan, job.checkpoint), int(plan.drop_blocks or 0)
    chosen = least(influence_of(job), count, free)
    if ALLOCATIONS[plan.allocate].measured:
        chosen = by_loss(job, count, free)
    journal.put(CHOSEN, chosen)
    return chosen


def by_loss(job: Job, count: int, free: list[int]) -> list[int]:
    """Block by block the one without which the held-back loss is the least; losses are journaled."""
    journal, (_, judged) = job.run.journal, held_back(job.calibration)
    known = journal.get(TRIED) or {}
    with job.run.stage("choose") as progress:
        return judged_drops(
            job.stream,
            influence_of(job),
            (count, free),
            judged,
            known,
            lambda losses: journal.put(TRIED, losses),
            progress,
        )


def influence_of(job: Job) -> list[float]:
    """Of every block of the source; measured once."""
    journal, saved = job.run.journal, job.run.work / INFLUENCE
    stream, text = job.stream.whole, job.calibration
    if (known := journal.get(INFLUENCE)) is None:

        def measure() -> list[float]:
            with job.run.stage(INFLUENCE, count_blocks(saved)) as progress:
                return influences(stream, text, Passing(progress, saved))

        known = fitting(job.run, stream, text, saved, measure)
        journal.put(INFLUENCE, known)
    return known


def folded_source(
    run: Run, stream: BlockStream, dropped: list[int], text: TokenSet | None
) -> FewerBlocks:
    """The source of a stream without these blocks, folded on a text if there is one."""
    folded = folded_blocks(run, stream, dropped, text) if text else Folded()
    return FewerBlocks(stream.checkpoint, dropped, folded.tensors, folded.record)


def folded_blocks(run: Run, stream: BlockStream, dropped: list[int], text: TokenSet) -> Folded:
    """What the fold of these blocks changes; computed once."""
    # An answer that is judged is folded on a part of the text alone.
    name = f"fold of {len(dropped)} on {text.tokens} tokens"
    file, record = run.work / f"{name}.safetensors", run.journal.get(name)
    if record is not None:
        return Folded(load_file(file) if file.exists() else {}, record)

    def work() -> Folded:
        with run.stage("fold") as progress:
            return fold(stream, dropped, text, progress)

    folded = fitting(run, stream, text, run.work / "fold", work)
    if folded.tensors:
        save_file(folded.tensors, file)
    run.journal.put(name, folded.record)
    return folded
