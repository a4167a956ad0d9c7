"""The widths that may be written: aligned, expressible in the container, shared by devices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.checkpoint import Checkpoint
from compressor.containers import takes
from compressor.errors import InputError

WIDE, ALIGN_WIDE = 2048, 128


@dataclass(frozen=True)
class Lattice:
    """The widths that may be written: FFN widths ascending, and numbers of KV groups ascending."""

    ffn: list[int]
    attention: list[int]

    def of_block(self, units: Mapping[str, int]) -> dict[str, list[int]]:
        """The widths of each group of a block that has so many units."""
        steps = {"attention": self.attention, "ffn": self.ffn}
        return {group: up_to(widths, units[group]) for group, widths in steps.items()}


def up_to(widths: Sequence[int], units: int) -> list[int]:
    """Those of the widths that a block with so many units can have; a narrow one can stay whole."""
    if units >= widths[-1]:
        return list(widths)
    return [*(width for width in widths if width < units), units]


def default_align(width: int) -> int:
    """128 for real models; for small ones the largest power of two that divides, up to width/16."""
    if width >= WIDE:
        return ALIGN_WIDE
    align = 4
    while align * 2 <= width // 16 and width % (align * 2) == 0:
        align *= 2
    return align


def lattice(
    checkpoint: Checkpoint,
    align: int | None = None,
    tp: int = 1,
    container: str = "auto",
    columns: int = 1,
    served: bool = True,
) -> Lattice:
    """Widths of the uniform layout that the container can express and `tp` devices can share.

    columns: what the input channels of every projection are to be a multiple of. served: whether vLLM
    is to load what is written, as it does the uniform layout.
    """
    width = checkpoint.units["ffn"]
    if (align is not None and align < 1) or tp < 1:
        raise InputError(f"--align and --tp must be positive, not {align} and {tp}.")
    step = align or default_align(width)
    if tp > 1:
        step = math.lcm(step, ALIGN_WIDE * tp)
    step = math.lcm(step, columns)
    rep = checkpoint.queries_per_group
    refused = (
        f"No cut of this model has input channels in whole groups of {columns} (--quantize-group): "
        f"its hidden size is {checkpoint.hidden_size}, and its heads have {checkpoint.head_dim} "
        f"channels, {rep} to a KV head."
    )
    if checkpoint.hidden_size % columns:
        raise InputError(refused)
    if step > width:
        raise InputError(f"FFN widths in steps of {step} do not exist: the model's is {width}.")
    groups = checkpoint.units["attention"]
    whole = [g for g in range(1, groups + 1) if not g * rep * checkpoint.head_dim % columns]
    counts = [
        g
        for g in whole
        if g == groups or (g % tp == 0 and takes(checkpoint, {g}, container, served))
    ]
    if not counts:
        raise InputError(refused)
    widths = {*range(step, width + 1, step), *([] if width % columns else [width])}
    return Lattice(sorted(widths), counts)
