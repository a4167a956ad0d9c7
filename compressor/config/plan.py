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
        "uniform shares (default); exact: widths of the least measured errors; measured: the same with "
        "errors in nats of the model's loss; besa: learned ones (default of the method besa); all three "
        "judged by held-back text; or global: one ranking of all units (layout per-layer).",
    )
    align: int | None = option(
        None,
        "--align",
        "FFN widths are multiples of this (by default of the widest of 256, 128, .. 8 that comes within "
        "half a point of the target; where none does, of 4, 2 or 1).",
        at_least(1),
    )
    protect: tuple[int, ...] = option(
        (), "--protect", "Blocks left whole, such as 0,1,-1 (layout per-layer).", parse=parse_blocks
    )
    tp: int = option(
        1, "--tp", "Tensor-parallel devices that the widths must divide by.", at_least(1)
    )
    besa_sampling: str | None = option(
        None,
        "besa_sampling",
        "With --allocate besa: none (default), or categorical: the width of each step is drawn.",
        one_of("none", "categorical"),
    )
