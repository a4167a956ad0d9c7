"""Kernels of quantised weights, by the multiples that they are made for."""

from collections.abc import Iterable

from compressor.analysis.inspection.loaders.answer import UNKNOWN, Answer, different
from compressor.config.packing import FP8, W4A16, Packing
from compressor.model.widths import BlockWidths

GROUP, MARLIN_GROUPS = 128, (32, 64, 128)  # weights of one scale
MARLIN_IN, MARLIN_OUT = 128, 64  # channels of one of Marlin's tiles
CUTLASS = 16  # channels on either side, of FP8


def kernels(widths: list[BlockWidths] | None, packing: Packing | None) -> Answer:
    """Those of the folder's weights, or of 4-bit ones that might be made of them."""
    if packing is None or packing.scheme == W4A16:
        return four_bits(widths, packing.group if packing else GROUP)
    least = (CUTLASS, CUTLASS) if packing.scheme == FP8 else (MARLIN_IN, MARLIN_OUT)
    sides = (input_channels(widths), output_channels(widths))
    checks = [*zip(("input", "output"), sides, least, strict=True)]
    return by_multiples(f"{packing.scheme} kernels", widths, checks)


def four_bits(widths: list[BlockWidths] | None, group: int = GROUP) -> Answer:
    """Marlin, as vLLM calls it: q, k and v are one matrix, and so are the FFN's inputs."""
    target = f"4-bit kernels, group {group}"
    if group not in MARLIN_GROUPS:
        return Answer(target, False, f"they have groups of {', '.join(map(str, MARLIN_GROUPS))}")
    checks = (
        ("input", input_channels(widths), max(group, MARLIN_IN)),
        ("output", output_channels(widths), MARLIN_OUT),
    )
    return by_multiples(target, widths, checks)


def input_channels(widths: list[BlockWidths] | None) -> set[int]:
    return {channels for block in set(widths or []) for _, channels in block.matrices}


def output_channels(widths: list[BlockWidths] | None) -> set[int]:
    merged = [
        (w.hidden, w.query + 2 * w.key_value, w.ffn_inputs * w.ffn) for w in set(widths or [])
    ]
    return {channels for block in merged for channels in block}


def by_multiples(
    target: str, widths: list[BlockWidths] | None, checks: Iterable[tuple[str, set[int], int]]
) -> Answer:
    """Equal blocks, and channels that are multiples: `checks` are (side, channels, of how many)."""
    if not widths or not all(counts for _, counts, _ in checks):
        return Answer(target, None, UNKNOWN)
    if reason := different(widths):
        return Answer(target, False, reason)
    shown = []
    for side, counts, multiple in checks:
        for channels in sorted(counts):
            if channels % multiple:
                rest = f"{channels} mod {multiple} is {channels % multiple}"
                return Answer(target, False, f"{side} channels: {rest}")
        shown.append(
            f"{side} channels {', '.join(map(str, sorted(counts)))}: multiples of {multiple}"
        )
    return Answer(target, True, "; ".join(shown))
