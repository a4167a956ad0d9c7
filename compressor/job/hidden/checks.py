"""What of a cut of the hidden size can be refused once the source is known; how many channels stay."""

from compressor.config.plan import PlanConfig
from compressor.errors import InputError
from compressor.job.depth import checks as depth
from compressor.model.fewer_channels import STEP, FewerChannels, check_family, step_of
from compressor.model.source import Source


def outlined(plan: PlanConfig, checkpoint: Source, columns: int) -> Source:
    """The source without as many blocks, or channels, as are to go: which, is not known yet."""
    if plan.keep_hidden is None:
        return depth.outlined(plan, checkpoint)
    return FewerChannels(checkpoint, range(kept_channels(plan, checkpoint, columns)))


def kept_channels(plan: PlanConfig, checkpoint: Source, columns: int) -> int:
    """How many channels stay: the multiple nearest to what is asked; InputError for none, or for all.

    columns: what 4 bits need a multiple of.
    """
    check_family(checkpoint)
    asked, size = plan.keep_hidden, checkpoint.hidden_size
    step = step_of(checkpoint, plan.align or STEP, columns)
    channels = round((asked * size if asked < 1 else asked) / step) * step
    if not 0 < channels < size:
        raise InputError(
            f"--keep-hidden {asked:g} comes to {channels} of the {size} channels of {checkpoint.label}, "
            f"in multiples of {step}; give another share, or a finer --align."
        )
    return channels
