"""What of a cut of the hidden size can be refused once the source is known; how many channels stay."""

from compressor.config.job import JobConfig
from compressor.errors import InputError
from compressor.job.depth import checks as depth
from compressor.model.fewer_channels import STEP, FewerChannels, check_family, step_of
from compressor.model.source import Source


def outlined(config: JobConfig, checkpoint: Source) -> Source:
    """The source without as many blocks, or channels, as are to go: which, is not known yet."""
    if config.plan.keep_hidden is None:
        return depth.outlined(config.plan, checkpoint)
    return FewerChannels(checkpoint, range(kept_channels(config, checkpoint)))


def kept_channels(config: JobConfig, checkpoint: Source) -> int:
    """How many channels stay: the multiple that is nearest to what is asked; InputError for none."""
    check_family(checkpoint)
    asked, size = config.plan.keep_hidden, checkpoint.hidden_size
    step = step_of(checkpoint, config.plan.align or STEP, config.quantization.columns)
    channels = round((asked * size if asked < 1 else asked) / step) * step
    if not 0 < channels < size:
        raise InputError(
            f"--keep-hidden {asked:g} comes to {channels} of the {size} channels of {checkpoint.label}, "
            f"in multiples of {step}; give another share, or a finer --align."
        )
    return channels
