"""How much stays, and where. None: the best choice that goes with the rest (`job/resolve.py`)."""

from dataclasses import dataclass

from compressor.config.amounts import parse_blocks
from compressor.config.options import at_least, one_of, option
from compressor.config.target import Target


@dataclass(frozen=True)
class PlanConfig:
    """The targets, one result each, and which widths a result may have."""

    targets: tuple[Target, ...] = ()
    allocate: str | None = option(
        None,
        "--allocate",
        "How widths are divided among blocks and parts. uniform: equal shares (default). exact: by the "
        "measured error of each cut. measured: by the model's loss after it. besa: learned (default of "
        "--method besa). Held-back text judges these three. global: one ranking of the units of all "
        "blocks, with --layout per-layer.",
    )
    align: int | None = option(
        None,
        "--align",
        "FFN widths are multiples of this; by default of the largest of 256, 128, ... 1 that comes "
        "within half a point of the target.",
        at_least(1),
    )
    protect: tuple[int, ...] = option(
        (),
        "--protect",
        "Blocks from which nothing is cut, such as 0,1,-1; with --layout per-layer.",
        parse=parse_blocks,
    )
    tp: int = option(
        1, "--tp", "Devices that are to share the result by tensor parallelism.", at_least(1)
    )
    besa_sampling: str | None = option(
        None,
        "besa_sampling",
        "With --allocate besa: none (default), or categorical: the width of each step is drawn.",
        one_of("none", "categorical"),
    )
