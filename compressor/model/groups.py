"""The two prunable parts of a block, by name, and what their units are called."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from compressor.model.families import Family

GROUPS = ("attention", "ffn")


def counts(widths: Sequence[Mapping[str, int]], group: str) -> set[int]:
    """The numbers of units of a group that blocks have; a block of another kind has none."""
    return {width[group] for width in widths if width[group]}


def are_alike(widths: Sequence[Mapping[str, int]]) -> bool:
    """Whether all blocks have as many units of a group, as far as they have any."""
    return all(len(counts(widths, group)) <= 1 for group in GROUPS)


def unit_names(family: "Family") -> dict[str, str]:
    """What a unit of each group is, in the plural."""
    channels = "channels of experts" if family.experts else "FFN channels"
    return {"ffn": "experts" if family.whole_experts else channels, "attention": "KV groups"}
