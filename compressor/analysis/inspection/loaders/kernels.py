"""Kernels of 4-bit weights, by the multiples that they are made for."""

from collections.abc import Iterable

from compressor.analysis.inspection.loaders.answer import UNKNOWN, Answer, different
from compressor.model.widths import BlockWidths

GROUP, MARLIN_GROUPS = 128, (32, 64, 128)  # weights of one scale
MARLIN_IN, MARLIN_OUT = 128, 64  # channels of one of Marlin's tiles


def four_bits(widths: list[BlockWidths] | None, group: int = GROUP) -> Answer:
    """Marlin, as vLLM calls it: q, k and v are one matrix, and so are the FFN's inputs."""
    merged = [
        (w.hidden, w.query + 2 * w.key_value, w.ffn_inputs * w.ffn) for w in set(widths or [])
    ]
    outputs = {channels for block in merged for channels in block}
    target = f"4-bit kernels, group {group}"
    if group not in MARLIN_GROUPS:
        return Answer(target, False, f"they have groups of {', '.join(map(str, MARLIN_GROUPS))}")
    checks = (
        ("input", input_channels(widths), max(group, MARLIN_IN)),
        ("output", outputs, MARLIN_OUT),
    )
    return by_multiples(target, widths, checks)


def input_channels(widths: list[BlockWidths] | None) -> set[int]:
    return {channels for block in set(widths or []) for _, channels in block.matrices}


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
