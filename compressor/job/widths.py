"""What the options of a job say of widths."""

from compressor.job.settings import Settings
from compressor.model.checkpoint import Checkpoint
from compressor.planning.alignment import ANY, Alignment
from compressor.planning.allocation import alignment, protected
from compressor.planning.lattice import Lattice, Wanted
from compressor.planning.reach import Reach, reach_of
from compressor.planning.target import Target


def wanted_widths(settings: Settings) -> Wanted:
    """What the options say of widths."""
    served = settings.layout in ("uniform", "all")
    columns = settings.quantization.columns
    return Wanted(settings.align, settings.tp, settings.container, columns, served)


def open_alignment(settings: Settings, checkpoint: Checkpoint, target: Target) -> Alignment:
    """The widths that a target may have with the options, and what others would have given."""
    protect = protected(settings.protect, checkpoint)
    return alignment(target, checkpoint, wanted_widths(settings), protect, settings.allocate)


def open_reach(settings: Settings, checkpoint: Checkpoint) -> Reach:
    """How small a model can become with the options."""
    wanted, protect = wanted_widths(settings), protected(settings.protect, checkpoint)
    finest = wanted.lattice(checkpoint, wanted.multiples(checkpoint.units["ffn"])[-1])
    return reach_of(checkpoint, finest, protect)


def measured_lattice(settings: Settings, checkpoint: Checkpoint) -> Lattice:
    """The widths whose errors are measured once for all targets: the finest that one of them gets.

    Before there is a target, those in which any share between what can be reached and 1, of all
    parameters or of the blocks, is met within half a point (`alignment.py`, the rule `compared`). A
    target that then needs finer ones, a bound, gets the finest of these.
    """
    targets = settings.targets or [ANY]
    each = (open_alignment(settings, checkpoint, target).lattice for target in targets)
    return min(each, key=lambda widths: widths.align)
