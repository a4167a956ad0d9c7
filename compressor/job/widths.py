"""What the options of a job say of widths."""

from compressor.config.job import JobConfig
from compressor.config.layouts import ALL, NAS, UNIFORM
from compressor.config.target import Target
from compressor.model.source import Source
from compressor.planning.alignment import ANY, Alignment
from compressor.planning.allocation import alignment, protected
from compressor.planning.lattice import Lattice, Wanted
from compressor.planning.reach import Reach, reach_of


def wanted_widths(config: JobConfig, layout: str | None = None) -> Wanted:
    """What the options say of widths. layout: that of one of the results."""
    plan, layout = config.plan, layout or config.write.layout
    layout, columns = UNIFORM if layout == ALL else layout, config.quantization.columns
    whole_heads = layout == NAS and bool(plan.protect)
    return Wanted(plan.align, plan.tp, config.write.container, columns, layout, whole_heads)


def open_alignment(
    config: JobConfig, checkpoint: Source, target: Target, layout: str | None = None
) -> Alignment:
    """The widths that a target may have with the options, and what others would have given."""
    protect = protected(config.plan.protect, checkpoint)
    wanted = wanted_widths(config, layout)
    return alignment(target, checkpoint, wanted, protect, config.plan.allocate)


def open_reach(config: JobConfig, checkpoint: Source) -> Reach:
    """How small a model can become with the options."""
    wanted, protect = wanted_widths(config), protected(config.plan.protect, checkpoint)
    finest = wanted.lattice(
        checkpoint, wanted.multiples_of(checkpoint, checkpoint.units["ffn"])[-1]
    )
    return reach_of(checkpoint, finest, protect)


def measured_lattice(config: JobConfig, checkpoint: Source) -> Lattice:
    """The widths whose errors are measured once for all targets: the finest that one of them gets.

    Before there is a target, those in which any share between what can be reached and 1, of all
    parameters or of the blocks, is met within half a point (`alignment.py`, the rule `compared`). A
    target that then needs finer ones, a bound, gets the finest of these.
    """
    targets = config.plan.targets or [ANY]
    each = (open_alignment(config, checkpoint, target).lattice for target in targets)
    return min(each, key=lambda widths: widths.align)
