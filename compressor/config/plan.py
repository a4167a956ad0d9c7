"""How much stays, and where. None: the best choice that goes with the rest (`job/resolve.py`)."""

from dataclasses import dataclass

from compressor.config.amounts import AUTO, parse_blocks, parse_drop
from compressor.config.options import at_least, one_of, option
from compressor.config.target import DEPTH, HIDDEN, Target


@dataclass(frozen=True)
class PlanConfig:
    """The targets, one result each, and which blocks and widths a result may have."""

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
    drop_blocks: int | str | None = option(
        None,
        "--drop-blocks",
        "Whole blocks to leave out, so many, or auto: as many as a --keep or --target is best reached "
        "with. What they did is folded into the blocks before them.",
        (f"a number from 1 up, or {AUTO}", lambda x: x == AUTO or x >= 1),
        parse_drop,
    )
    keep_hidden: float | None = option(
        None,
        "--keep-hidden",
        "Share of the hidden size that stays, such as 0.9, or a number of channels: the same channels "
        "of the residual stream in the whole model. Multiples of 8, or of --align.",
        (
            "a share between 0 and 1, or a number of channels above 1",
            lambda x: 0 < x < 1 or (x > 1 and x == int(x)),
        ),
    )
    fold: bool = option(
        True, "fold", "Whether what dropped blocks did is folded into the blocks before them."
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

    @property
    def results(self) -> tuple[Target, ...]:
        """What each result is to reach: the targets, or what is left without the dropped blocks, or
        channels.
        """
        if self.keep_hidden is not None:
            return (Target(HIDDEN, self.keep_hidden),)
        if self.targets or not isinstance(self.drop_blocks, int):
            return self.targets
        return (Target(DEPTH, self.drop_blocks),)
