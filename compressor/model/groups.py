"""The two prunable parts of a block, by name, and what their units are called."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from compressor.model.families import Family

GROUPS = ("attention", "ffn")


def unit_names(family: "Family") -> dict[str, str]:
    """What a unit of each group is, in the plural."""
    channels = "channels of experts" if family.experts else "FFN channels"
    return {"ffn": "experts" if family.whole_experts else channels, "attention": "KV groups"}
