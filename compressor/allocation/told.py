"""What is said and recorded of widths: their multiple, what others would give, what kernels want."""

from collections.abc import Sequence
from dataclasses import replace

from compressor.allocation.alignment import Alignment, Outcome, alignment_of
from compressor.allocation.exact import Widths
from compressor.checkpoint import Checkpoint
from compressor.lattice import MULTIPLES
from compressor.plan import CLOSE, Costs, miss_of, reached

KERNELS = (
    "Tensor cores are quickest with multiples of 64; Marlin's 4-bit kernels take 128 (64 on outputs), "
    "FP8 blocks 128 and GGUF's k-quants 256: --align asks for one."
)


def described(alignment: Alignment) -> dict:
    """For a record: `align`, and `align_wider`, what the next wider usual multiple would have given:
    `reached` in the target's unit, by equal widths that nothing measured decides, or the `step` between
    its sizes, as a share.
    """
    wider = alignment.wider and {
        "align": alignment.wider.align,
        "reached": alignment.wider.reached,
        "step": alignment.wider.step,
    }
    return {"align": alignment.align, "align_wider": wider}


def in_words(alignment: Alignment) -> str:
    """`FFN widths are multiples of 32 (0.8011 of all parameters; multiples of 64 would give 0.7937).`"""
    said = comes_to(alignment, alignment.taken)
    if alignment.taken.reached is not None:
        said = alignment.target.in_words(alignment.taken.reached)
    if alignment.wider is not None:
        wider = comes_to(alignment, alignment.wider)
        said += f"; multiples of {alignment.wider.align} would give {wider}"
    return f"FFN widths are multiples of {alignment.align} ({said})."


def kernels(alignments: Sequence[Alignment]) -> list[str]:
    """What kernels want, unless all have it."""
    return [KERNELS] if any(each.align % MULTIPLES[0] for each in alignments) else []


def comes_to(alignment: Alignment, outcome: Outcome) -> str:
    """A size, or, where measurements decide it, how far sizes are apart."""
    if alignment.rule != "solved":
        return f"sizes {points(outcome.step)} apart"
    if outcome.reached is None:
        return "nothing as small"
    return alignment.target.number(outcome.reached)


def points(share: float) -> str:
    count = f"{100 * share:.2g}"
    return f"{count} point{'s' * (count != '1')}"


def width_notes(
    alignment: Alignment, checkpoint: Checkpoint, widths: Sequence[Widths]
) -> list[str]:
    """Of the widths of a result, sentences where their multiple is narrower than the usual ones, and
    where the target is missed by more than half a point.
    """
    target, notes = alignment.target, []
    if alignment.wanted.align is None and alignment.align % MULTIPLES[-1]:
        usual = alignment.narrowest
        notes.append(
            f"FFN widths are multiples of {alignment.align}, which kernels are not made for: "
            + (
                f"multiples of {usual.align} would give {comes_to(alignment, usual)}. --align "
                f"{usual.align} takes them all the same."
                if usual
                else "a block has not even 8 channels."
            )
        )
    costs = Costs.of(checkpoint, target.budget)
    size = costs.size(widths, target.measure)
    miss = miss_of(target, costs, size)
    if abs(miss) > CLOSE:
        side = "above" if miss > 0 else "below"
        notes.append(
            f"What stays is {target.in_words(reached(target, costs, size))}, {points(abs(miss))} "
            f"{side} {target.flag}: {what_comes_nearer(alignment, checkpoint)}."
        )
    return notes


def what_comes_nearer(alignment: Alignment, checkpoint: Checkpoint) -> str:
    """The --align that would do, or what allows none."""
    wanted = alignment.wanted
    free = alignment_of(
        alignment.target,
        checkpoint,
        replace(wanted, align=None),
        alignment.protect,
        alignment.rule,
    )
    if wanted.align is not None and free.taken.step < alignment.taken.step:
        return f"--align {free.align} would give {comes_to(free, free.taken)}"
    if wanted.tp > 1:
        return f"--tp {wanted.tp} shares FFN channels in multiples of {wanted.least}"
    if wanted.columns > 1:
        return f"--quantize-group {wanted.columns} takes them in groups"
    return "no other width comes nearer"
