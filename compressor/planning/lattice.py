"""The widths that may be written: aligned, expressible in the container, shared by devices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.config.layouts import LAYOUTS, UNIFORM
from compressor.errors import InputError
from compressor.model.heads import why_refused
from compressor.model.source import Source

# Usual multiples of FFN channels: which of them a target gets, `alignment.py` says. What
# kernels and formats want: tensor cores read bf16 best in lines of 64; Marlin's 4-bit kernels take 128
# input channels and 64 output channels; FP8 blocks are 128 x 128; GGUF's k-quants are rows of 256.
MULTIPLES = (256, 128, 64, 32, 16, 8)
FINER = (4, 2, 1)  # which no kernel wants, where those come too far from a target
SHARED = 128  # of the part that each of several devices has
GROUPED = 16  # bytes of which torch's grouped products want rows of stacks to be multiples
CHOICE = 16  # widths to choose from, where no target says how fine they must be


@dataclass(frozen=True)
class Lattice:
    """The widths that may be written: FFN widths ascending, and numbers of KV groups ascending.

    step: what FFN widths are multiples of, where the first of them is not that. Of a mixture of experts
    FFN widths are numbers of experts, from as many on as a token is routed to, or of the channels of all
    experts together, which are so many `parts`, and `step` is that of one.
    """

    ffn: list[int]
    attention: list[int]
    step: int | None = None
    parts: int = 1

    @property
    def align(self) -> int:
        """What all FFN widths but the whole one are multiples of."""
        return self.step or self.ffn[0]

    def of_block(self, units: Mapping[str, int]) -> dict[str, list[int]]:
        """The widths of each group of a block that has so many units."""
        steps = {"attention": self.attention, "ffn": self.ffn}
        return {group: up_to(widths, units[group]) for group, widths in steps.items()}


def up_to(widths: Sequence[int], units: int) -> list[int]:
    """Those of the widths that a block with so many units can have; a narrow one can stay whole."""
    if units >= widths[-1]:
        return list(widths)
    return [*(width for width in widths if width < units), units]


@dataclass(frozen=True)
class Wanted:
    """What the options say of widths, as `lattice` takes it.

    whole_heads: whether all KV groups stay, since in a block they must, and all have as many.
    """

    align: int | None = None
    tp: int = 1
    container: str = "auto"
    columns: int = 1
    layout: str = UNIFORM
    whole_heads: bool = False

    @property
    def alike(self) -> tuple[str, ...]:
        """The groups of which all blocks have as many units."""
        return LAYOUTS[self.layout].alike

    @property
    def least(self) -> int:
        """What FFN widths are a multiple of whatever the target is, --align apart."""
        return math.lcm(self.columns, SHARED * self.tp if self.tp > 1 else 1)

    def multiples(self, width: int) -> list[int]:
        """The multiples to choose from up to a width, the widest first; with --align that alone."""
        if self.align is not None:
            return [self.align]
        each = dict.fromkeys(math.lcm(m, self.least) for m in (*MULTIPLES, *FINER))
        return [m for m in each if m <= width] or [self.least]

    def multiples_of(self, checkpoint: Source, width: int) -> list[int]:
        """The same of a model: experts are counted one by one, whatever kernels want of channels."""
        if checkpoint.family.whole_experts:
            return [self.align or 1]
        return self.multiples(width // checkpoint.ffn_parts)

    def lattice(self, checkpoint: Source, align: int) -> Lattice:
        widths = lattice(checkpoint, align, self.tp, self.container, self.columns, self.layout)
        return replace(widths, attention=widths.attention[-1:]) if self.whole_heads else widths


def default_align(width: int) -> int:
    """The widest usual multiple that leaves widths enough to choose from."""
    return next((m for m in (*MULTIPLES, *FINER) if width // m >= CHOICE), 1)


def lattice(
    checkpoint: Source,
    align: int | None = None,
    tp: int = 1,
    container: str = "auto",
    columns: int = 1,
    layout: str = UNIFORM,
) -> Lattice:
    """Widths that the container can express in a layout and `tp` devices can share.

    align: what FFN widths are multiples of, by default `default_align`. columns: what the input
    channels of every projection are to be a multiple of.
    """
    if checkpoint.family.whole_experts:
        return lattice_of_experts(checkpoint, align or 1)
    if checkpoint.family.experts:
        return lattice_in_experts(checkpoint, align, tp)
    width = checkpoint.units["ffn"]
    if (align is not None and align < 1) or tp < 1:
        raise InputError(f"--align and --tp must be positive, not {align} and {tp}.")
    step = align or default_align(width)
    if tp > 1:
        step = math.lcm(step, SHARED * tp)
    step = math.lcm(step, columns)
    rep = checkpoint.queries_per_group
    refused = (
        f"No cut of this model has input channels in whole groups of {columns} (quantize_group): "
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
        if g == groups or (g % tp == 0 and not why_refused(checkpoint, {g}, container, layout))
    ]
    if not counts:
        raise InputError(refused)
    widths = {*range(step, width + 1, step), *([] if width % columns else [width])}
    return Lattice(sorted(widths), counts)


def lattice_of_experts(checkpoint: Source, step: int) -> Lattice:
    """Numbers of experts in such steps; the attention, a small part of such a model, stays whole.

    Of groups that a router chooses first all have as many.
    """
    count, fewest = checkpoint.units["ffn"], checkpoint.family.experts.fewest(checkpoint.config)
    if step < 1:
        raise InputError(f"--align must be positive, not {step}.")
    step = math.lcm(step, checkpoint.ffn_parts)
    counts = {*range(step, count + 1, step), count}
    left = sorted(n for n in counts if n >= fewest)
    return Lattice(left, [checkpoint.units["attention"]], step)


def lattice_in_experts(checkpoint: Source, align: int | None, tp: int) -> Lattice:
    """Numbers of channels of all experts together, as many of each; the attention stays whole.

    A shared expert that is so many experts wide stays as wide as it is.
    """
    count = checkpoint.ffn_parts
    width = checkpoint.units["ffn"] // count
    step = align or default_align(width)
    if step < 1 or tp < 1:
        raise InputError(f"--align and --tp must be positive, not {step} and {tp}.")
    step = math.lcm(step, GROUPED // checkpoint.dtype.itemsize, SHARED * tp if tp > 1 else 1)
    if step > width:
        raise InputError(f"Widths of experts in steps of {step} do not exist: theirs is {width}.")
    shared = checkpoint.family.experts.of_shared(checkpoint.config) or 0
    widths = {n for n in (*range(step, width + 1, step), width) if not shared % n}
    return Lattice(sorted(n * count for n in widths), [checkpoint.units["attention"]], step, count)
