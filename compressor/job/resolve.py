"""Defaults that depend on other options, in one place."""

from compressor.config.repair import KINDS
from compressor.scoring.methods import METHODS


def default_selection(method: str, repair: str) -> str:
    """`obs` where a repair then refits what stays, which is what the elimination counts on.

    Methods that look at weights alone, or at nothing, are for comparison: theirs is the score. Of an
    unknown method or repair, which is refused elsewhere, any.
    """
    kind = KINDS.get(repair)
    looks = method in METHODS and METHODS[method].wants(METHODS[method].check_mode(None))
    return "obs" if looks and kind is not None and kind.weights else "score"
