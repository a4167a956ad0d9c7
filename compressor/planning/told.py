"""What is said and recorded of widths: their multiple, what others would give, what kernels want."""

from collections.abc import Sequence
from dataclasses import replace

from compressor.model.source import Source
from compressor.planning.alignment import Alignment, Outcome, alignment_of
from compressor.planning.costs import CLOSE, Costs, miss_of, reached
from compressor.planning.lattice import MULTIPLES
from compressor.solvers.exact import Widths

KERNELS = (
    "Tensor cores are quickest with multiples of 64; Marlin's 4-bit kernels take 128 (64 on outputs), "
    "FP8 blocks 128 and GGUF's k-quants 256: --align asks for one."
)


def described(alignment: Alignment) -> dict:
    """For a record: `align`, and `align_wider`, what the next wider usual multiple would have come to:
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
    if alignment.lattice.step is not None:
        return experts_in_words(alignment)
    said = comes_to(alignment, alignment.taken)
    if alignment.taken.reached is not None:
        said = alignment.target.in_words(alignment.taken.reached)
    if alignment.wider is not None:
        wider = comes_to(alignment, alignment.wider)
        said += f"; multiples of {alignment.wider.align} would give {wider}"
    return f"FFN widths are multiples of {alignment.align} ({said})."


def experts_in_words(alignment: Alignment) -> str:
    """`2 to 8 experts of a block can stay (0.8011 of all parameters).`"""
    taken, parts = alignment.taken, alignment.lattice.parts
    least, most = (alignment.lattice.ffn[i] // parts for i in (0, -1))
    said = f"{least} to {most} experts of a block can stay"
    if parts > 1:
        said = (
            f"{least} to {most} channels of every expert can stay, multiples of {alignment.align}"
        )
    if taken.reached is not None:
        said += f" ({alignment.target.in_words(taken.reached)})"
    return f"{said}."


def plan_in_words(alignment: Alignment, checkpoint: Source, widths: Sequence[Widths]) -> list[str]:
    """All that there is to say of a plan's widths."""
    notes = width_notes(alignment, checkpoint, widths)
    return [in_words(alignment), *kernels([alignment]), *notes]


def kernels(alignments: Sequence[Alignment]) -> list[str]:
    """What kernels want, unless all have it."""
    channels = [each for each in alignments if each.lattice.step is None]
    return [KERNELS] if any(each.align % MULTIPLES[0] for each in channels) else []


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
    alignment: Alignment, checkpoint: Source, widths: Sequence[Widths] | None = None
) -> list[str]:
    """Sentences where the multiple is narrower than the usual ones, and where a result of these widths
    misses the target; without widths, of what is known before there are any.
    """
    target, taken = alignment.target, alignment.taken
    size, miss = taken.reached, taken.miss
    if widths is not None:
        costs = Costs.of(checkpoint, target.budget)
        counted = costs.size(widths, target.measure)
        size, miss = reached(target, costs, counted), miss_of(target, costs, counted)
    return narrow(alignment) + missed(alignment, checkpoint, size, miss)


def narrow(alignment: Alignment) -> list[str]:
    """A sentence where nobody asked for a multiple that no kernel is made for."""
    asked = alignment.wanted.align is not None or alignment.lattice.step is not None
    if asked or alignment.align % MULTIPLES[-1] == 0:
        return []
    said = f"FFN widths are multiples of {alignment.align}, which kernels are not made for: "
    usual = alignment.narrowest
    if usual is None:
        return [f"{said}a block has not even {MULTIPLES[-1]} channels."]
    would = comes_to(alignment, usual)
    return [
        f"{said}multiples of {usual.align} would give {would}; --align {usual.align} takes them."
    ]


def missed(
    alignment: Alignment, checkpoint: Source, size: float | None, miss: float | None
) -> list[str]:
    """A sentence where a size, in the target's unit, is more than half a point from it."""
    if miss is None or abs(miss) <= CLOSE:
        return []
    side = "above" if miss > 0 else "below"
    return [
        f"What stays is {alignment.target.in_words(size)}, {points(abs(miss))} {side} "
        f"{alignment.target.flag}: {what_comes_nearer(alignment, checkpoint)}."
    ]


def what_comes_nearer(alignment: Alignment, checkpoint: Source) -> str:
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
        return f"--quantize takes them in groups of {wanted.columns}"
    return "no other width comes nearer" if free.rule == "solved" else "steps are no finer"
