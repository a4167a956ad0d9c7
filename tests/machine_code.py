"""What the machine code of every kernel may cost: one table for all architectures, and its judge.

The numbers are what the compilers make today, rounded up by a twentieth: a change that costs more has
to say so here. Instructions a byte are counted as `compressor.kernels.sass` says. An H200 can start
about seven for every byte that a copy of its memory moves (`bench/PREDICTIONS.md`), so a kernel with
more is bound by its instructions.
"""

import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from compressor.kernels.sass import Figures

ARCHS = (80, 89, 90, 100, 120)
# What tests have Triton compile is found again by the others, and by the next run.
TRITON_CACHE = str(Path(tempfile.gettempdir(), "compressor-triton"))


@dataclass(frozen=True)
class Limit:
    """Of the kernels whose name fits a pattern.

    load, store: bytes of the narrowest access that the hot loop may have; None: it has none.
    per_byte:    instructions a byte at most.
    beside:      bytes of narrower accesses that it may have too, no more of them than of wide ones.
    spills:      instructions in the whole kernel that spill, at most.
    """

    kernel: str
    load: int | None
    store: int | None
    per_byte: float
    beside: tuple[int, ...] = ()
    spills: int = 0


SCALE, MASK = (4,), (1,)  # a float a row or channel, a byte a token
LIMITS = [
    Limit("_colsum_kernel bf16/*", 16, None, 2.25, SCALE),
    Limit("_colsum_kernel fp32/*", 16, None, 1.0, SCALE),
    Limit("_gated_backward_kernel bf16/*", 16, 16, 1.65),
    # For the architectures other than 80 and 90, ptxas gives up a register or two of some kernels to
    # hold a warp more.
    Limit("_gated_backward_kernel fp32/*", 16, 16, 0.8, spills=2),
    Limit("_gated_swiglu_kernel bf16/* ACTIVATION=silu *", 16, 16, 3.3, SCALE),
    Limit("_gated_swiglu_kernel bf16/* ACTIVATION=gelu *", 16, 16, 5.6, SCALE),
    # A float32's product has the bits of torch's, which needs the slow division.
    Limit("_gated_swiglu_kernel fp32/*", 16, 16, 3.9, SCALE),
    Limit("_gated_swiglu_backward_kernel bf16/* ACTIVATION=silu *", 16, 16, 3.0),
    Limit("_gated_swiglu_backward_kernel bf16/* ACTIVATION=gelu *", 16, 16, 4.5),
    Limit("_gated_swiglu_backward_kernel fp32/*", 16, 16, 1.4),
    Limit("_moments_kernel bf16/*", 16, None, 4.2, MASK, spills=4),
    Limit("_moments_kernel fp32/*", 16, None, 2.0, MASK),
    Limit("_swiglu_moments_kernel bf16/* ACTIVATION=silu * PRODUCT=True *", 16, 16, 6.1, MASK),
    Limit("_swiglu_moments_kernel bf16/* PRODUCT=False *", 16, None, 7.5, MASK),
    Limit("_swiglu_moments_kernel bf16/* ACTIVATION=gelu * PRODUCT=True *", 16, 16, 8.3, MASK),
    Limit("_swiglu_moments_kernel fp32/*", 16, 16, 4.7, MASK),
    Limit("_taylor_kernel bf16/bf16/* COUNT=3 *", 16, None, 2.9),
    # Walking down, a program writes the sums of every row of its tile: a float a row.
    Limit("_taylor_kernel bf16/bf16/* COUNT=5 *", 16, 4, 5.8),
    Limit("_taylor_kernel bf16/fp32/*", 16, None, 2.4),
    Limit("_taylor_kernel fp32/*", 16, None, 1.4),
    Limit("_taylor_kernel fp16/*", 16, None, 3.2),
    Limit("_taylor_fold_kernel *BLOCK_MEMBERS=1", 16, None, 1.3, spills=2),
    # Its groups need not begin at a multiple of four floats.
    Limit("_taylor_fold_kernel *BLOCK_MEMBERS=128", 4, None, 2.9),
    # One thread a group walks along its candidates.
    Limit("cut_kernel", 4, None, 0.7),
    Limit("mask_kernel<unsigned short, true>", 16, 16, 1.8, SCALE),
    Limit("mask_kernel<unsigned int, true>", 16, 16, 1.05, SCALE),
    # Of rows that do not consist of aligned eights.
    Limit("mask_kernel<unsigned short, false>", 2, 2, 1.6),
    Limit("mask_kernel<unsigned int, false>", 2, 4, 1.0),
    Limit("backward_kernel<__*, true>", 16, None, 3.0, spills=2),
    Limit("backward_kernel<float, true>", 16, None, 1.5),
    Limit("backward_kernel<__*, false>", 2, None, 7.0),
    Limit("backward_kernel<float, false>", 2, None, 4.0),
    Limit("finish_kernel", 4, None, 3.8),
    Limit("compact_kernel<Move<*> >", 16, 16, 0.33),
    # What changes its width reads or writes half as many bytes.
    Limit("compact_kernel<Multiply<__*, __*> >", 16, 16, 1.2),
    Limit("compact_kernel<Multiply<__*, float> >", 8, 16, 0.95),
    Limit("compact_kernel<Multiply<float, __*> >", 16, 8, 0.75),
    Limit("compact_kernel<Multiply<float, float> >", 16, 16, 0.5),
    # A thread a channel: of a row of V and U its neighbours read the neighbouring numbers.
    Limit("step_kernel<*>", 4, None, 1.2),
    Limit("begin_kernel<*>", 4, 1, 12.5),
    Limit("merge_kernel<*>", 4, None, 2.3),
    # Of the loop that makes the keys; the sort stays in shared memory.
    Limit("rank_kernel<*>", 16, None, 1.4),
]


def complaints(name: str, figures: Figures) -> list[str]:
    """What is wrong with a kernel, one sentence each."""
    found = [limit for limit in LIMITS if fnmatchcase(name, limit.kernel)]
    if len(found) != 1:
        return [f"{name} fits {len(found)} patterns of LIMITS; it must fit one."]
    (limit,) = found
    said = []
    if figures.spills > limit.spills:
        said.append(f"{name} has {figures.spills} instructions that spill.")
    if figures.bulk:
        said.append(f"{name} has bulk copies, whose bytes are not counted.")
    for kind, widths, least in (
        ("load", figures.loads, limit.load),
        ("store", figures.stores, limit.store),
    ):
        if (least is None) != (not widths):
            said.append(f"{name} has the {kind}s {widths} in its loop, against {least}.")
        elif least is not None:
            wide = sum(n for width, n in widths.items() if width >= least)
            narrow = {width: n for width, n in widths.items() if width < least}
            allowed = {width: n for width, n in narrow.items() if width in limit.beside}
            if narrow != allowed or sum(narrow.values()) > wide:
                said.append(f"{name} has {kind}s {widths} (bytes: number), narrower than {least}.")
    if figures.per_byte > limit.per_byte:
        said.append(
            f"{name} has {figures.per_byte:.2f} instructions a byte, over {limit.per_byte}."
        )
    return said
