"""Which channels of the residual stream stay, and what is left of a job's source: the stage `energy`."""

from dataclasses import replace

from compressor.config.target import Target
from compressor.job.checks import solved_results
from compressor.job.depth.planning import plan_of_part
from compressor.job.hidden.checks import kept_channels
from compressor.job.job import Job
from compressor.job.micro_batches import fitting
from compressor.model.fewer_channels import FewerChannels
from compressor.model.passes import Passing
from compressor.model.saved_blocks import count_blocks
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.scoring.energy import energies, most

KEPT = "kept channels"  # of the journal


def narrowed(job: Job) -> Job:
    """The job on its source with the channels of the most energy alone."""
    known = job.run.journal.get(KEPT) or chosen(job)
    part = FewerChannels(job.checkpoint, known["channels"], {"energy": known["energy"]})
    wanted = solved_results(job.config, part)
    return replace(job, checkpoint=part, stream=job.stream.without(part), wanted=wanted)


def chosen(job: Job) -> dict:
    """The channels, and the share of the energy that is in them; measured once."""
    saved = job.run.work / "energy"

    def measure():
        with job.run.stage("energy", count_blocks(saved)) as progress:
            return energies(job.stream, job.calibration, Passing(progress, saved))

    energy = fitting(job.run, job.stream, job.calibration, saved, measure)
    columns = job.config.quantization.columns
    channels = most(energy, kept_channels(job.config.plan, job.checkpoint, columns))
    found = {"channels": channels, "energy": energy[channels].sum().item()}
    job.run.journal.put(KEPT, found)
    return found


def plan_of_hidden(source: FewerChannels, target: Target, seed: int) -> Plan:
    """All units of the blocks, in fewer channels."""
    blocks = weights_of(source) / weights_of(source.whole)
    plan = plan_of_part(source, target, seed, source.parameters, source.bytes, blocks)
    plan.about["hidden"] |= source.record
    return plan


def weights_of(source: Source) -> int:
    """The weights of all projections, or experts, that units are cut from."""
    names = {part.tensor for slices in source.family.groups().values() for part in slices}
    return sum(
        tensor.numel
        for block in range(source.blocks)
        for name in names & {*source.block_tensors(block)}
        if len((tensor := source.tensors[source.block_name(block, name)]).shape) > 1
    )
