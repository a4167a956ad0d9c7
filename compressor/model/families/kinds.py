"""Blocks of several kinds at once: what is otherwise in them, by several settings of a config."""

from collections.abc import Callable, Mapping
from typing import Any


def together(*kinds: Callable[[Mapping, int], Mapping[str, Any]]) -> Callable:
    """A block of several kinds at once, as `Family.kind`."""

    def kind(config: Mapping, block: int) -> dict[str, Any]:
        changes = [of(config, block) for of in kinds]
        whole = tuple(group for each in changes for group in each.get("whole", ()))
        return {name: value for each in changes for name, value in each.items()} | {"whole": whole}

    return kind
